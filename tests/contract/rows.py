"""The tables of the contract suite: a new algorithm, optimizer or parameter tree is one row here."""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox
import flax.linen
import flax.nnx
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params

from sparse_plugins import core
from tests.quick import quick_jit, thorough

# Masks change at steps 1, 3 and 4 of 6, so there are steps before, between and after.
WINDOW = {"update_freq": 2, "update_start_step": 1, "update_end_step": 4}
STEPS = 6

RIGL_AND_STE = "mixture of rigl and magnitude_ste"

# Entries kept of w (8, 6) and head (6, 4) in the end, by hand; one number where the layers share a budget.
# "2:4" runs down the rows, so the last two rows of head are a short group; channels round half to even.
# Rows that are several rows at once, by path; the layer that is left out stays dense.
MIXTURES: dict[str, dict[str, str]] = {
    RIGL_AND_STE: {"w": "rigl", "head|b": "magnitude_ste"},
    "mixture of set and random_ste": {"w": "random_ste", "head": "set"},
    "mixture of acdc and fisher": {"head": "acdc", ".*": "fisher"},
    "mixture of granet and grasp": {"w": "granet", "head": "grasp"},
    "mixture of static_sparse and no_prune": {"w": "static_sparse", ".*": "no_prune"},
    "mixture of 2:4 and nothing": {"head": "rigl 2:4"},
}
SHAPES = {"w": jnp.ones((8, 6)), "head": jnp.ones((6, 4)), "b": jnp.ones(6)}
BIAS = ("b", core.Axes(elementwise=0))
ROWS_AS_LAYERS = core.describe_layers(SHAPES, [BIAS, (".*", core.Axes(stack=0, inputs=1))])
COLUMNS_AS_HEADS = core.describe_layers(SHAPES, [BIAS, (".*", core.Axes(inputs=0, outputs=1, heads=1))])
# Outputs are summed over, so that those of head can leave; b belongs to none of them.
GROUPS = core.ChannelGroups(
    core.channel_graph(
        lambda p, x: jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["head"]), 1) + jnp.sum(p["b"] ** 2),
        SHAPES,
        jnp.ones((1, 8)),
    )
)
UPDATERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "no_prune": ({}, (48, 24)),
    **dict.fromkeys(("magnitude", "random", "saliency"), ({}, (12, 6))),
    **dict.fromkeys(("magnitude_ste", "random_ste", "static_sparse", "set", "rigl"), ({}, (12, 6))),
    **dict.fromkeys(("global_magnitude", "global_saliency", "snip", "grasp", "granet"), ({}, (18,))),
    **dict.fromkeys(("gradual_set", "gradual_rigl", "acdc", "fisher", "sr_ste", "soft_topk_ste"), ({}, (12, 6))),
    **dict.fromkeys(("wanda", "srigl"), ({}, (12, 8))),
    "magnitude 2:4": ({"sparsity_type": "2:4"}, (24, 16)),
    "magnitude_ste 2:4": ({"sparsity_type": "2:4"}, (24, 16)),
    "rigl 2:4": ({"sparsity_type": "2:4"}, (24, 16)),
    "saliency 2x2": ({"sparsity_type": "2x2"}, (12, 8)),
    "set 2x2": ({"sparsity_type": "2x2"}, (12, 8)),
    "magnitude channel": ({"sparsity_type": "channel_-1"}, (16, 6)),
    "rigl channel": ({"sparsity_type": "channel_-1"}, (16, 6)),
    "rigl stacked": ({"layers": ROWS_AS_LAYERS}, (16, 6)),
    "magnitude heads": ({"layers": COLUMNS_AS_HEADS, "sparsity_type": "heads"}, (16, 6)),
    "magnitude groups": ({"sparsity_type": GROUPS}, (16, 6)),
    "set groups": ({"sparsity_type": GROUPS}, (16, 6)),
    "rigl groups and 2:4": ({"sparsity_type": [("w", GROUPS), ("head", "2:4")]}, (16, 16)),
    "magnitude erk": ({"dist_type": "erk"}, (18,)),
    "gradual_set 2:4": ({"sparsity_type": "2:4"}, (24, 16)),
    "gradual_rigl 2x2": ({"sparsity_type": "2x2"}, (12, 8)),
    "rigl by path": ({"sparsity_type": [("w", "2:4"), ("head", "channel_-1")]}, (24, 6)),
    "magnitude by path": ({"sparsity_type": [("head", core.ConstantFanIn())]}, (12, 8)),
    **dict.fromkeys(MIXTURES, ({}, (12, 6))),
    "mixture of static_sparse and no_prune": ({}, (12, 24)),
    "mixture of 2:4 and nothing": ({}, (48, 16)),
}
NEVER_CHANGE = {"no_prune", "static_sparse", "mixture of static_sparse and no_prune"}
# Masks of one part change before an update moves the weights, those of the other afterwards.
TWO_PHASES = {RIGL_AND_STE, "mixture of set and random_ste"}
# One row for each way masks come about, for checks that cost a compilation of their own.
FAMILIES = [
    *("magnitude", "global_saliency", "random_ste", "rigl", "set 2x2", "magnitude 2:4"),
    *("granet", "gradual_set", "acdc", "fisher", "wanda", "grasp", "soft_topk_ste"),
    RIGL_AND_STE,
]
# One row for each way masks lie and layers are told; `make test` runs the others, too.
QUICK = {*FAMILIES, "no_prune", "static_sparse", "srigl", "rigl stacked", "magnitude groups", "rigl by path"}
ROWS = [row if row in QUICK else thorough(row) for row in UPDATERS]


def make_updater(row: str, **overrides: Any) -> core.BaseUpdater:
    if row in MIXTURES:
        return core.PerModule([(rule, make_updater(part, **overrides)) for rule, part in MIXTURES[row].items()])
    settings = {"algorithm": row.split()[0], "sparsity": 0.75, "drop_fraction": 0.5, **WINDOW}
    return core.create_updater_from_config(settings, **(UPDATERS[row][0] | overrides))


def record_extra() -> optax.GradientTransformationExtraArgs:
    """Adds the extra argument `unknown` up: its state shows what reached the inner transformation."""

    def update(updates: Any, state: Any, params: Any = None, *, unknown: Any, **extra: Any) -> Any:
        return updates, state + unknown

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)


def watch_squares() -> optax.GradientTransformation:
    """Leaves updates alone and keeps what Adam calls nu."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, state._replace(nu=jax.tree.map(lambda nu, g: 0.9 * nu + 0.1 * g**2, state.nu, updates))

    return optax.GradientTransformation(
        lambda params: optax.ScaleByRmsState(jax.tree.map(jnp.zeros_like, params)), update
    )


def inner() -> optax.GradientTransformationExtraArgs:
    """What the updaters wrap: its first state says which extra arguments reached it."""
    return optax.chain(record_extra(), watch_squares(), reduce_on_plateau())


def reduce_on_plateau() -> optax.GradientTransformation:
    """Not around Adam: whose first step moves all grown weights alike, to within rounding, and ties are fragile."""
    return optax.chain(optax.sgd(0.1, momentum=0.9), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))


LABELS = {"w": "wrapped", "head": "plain", "b": "plain"}
# What may stand around a sparse optimizer.
SURROUNDINGS: dict[str, Callable[[optax.GradientTransformation], optax.GradientTransformation]] = {
    "last of a chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "masked": lambda tx: optax.masked(tx, {"w": True, "head": False, "b": False}),
    "partition": lambda tx: optax.partition({"wrapped": tx, "plain": optax.sgd(0.1)}, LABELS),
    "partition by a rule": lambda tx: optax.partition(
        {"wrapped": tx, "plain": optax.sgd(0.1)},
        lambda params: jax.tree.map(lambda p: "wrapped" if p.ndim == 2 else "plain", params),
    ),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda scale: optax.chain(optax.scale(scale), tx))(1.0),
}

Layer = collections.namedtuple("Layer", ["kernel", "bias"])


def haiku_tree() -> Any:
    model = haiku.transform(lambda x: haiku.nets.MLP([6, 4])(x))
    return model.init(jax.random.key(1), jnp.ones((1, 8)))


def linen_tree() -> Any:
    return flax.linen.Sequential([flax.linen.Dense(6), flax.linen.Dense(4)]).init(jax.random.key(1), jnp.ones((1, 8)))


def nnx_tree() -> Any:
    rngs = flax.nnx.Rngs(1)
    model = flax.nnx.Sequential(flax.nnx.Linear(8, 6, rngs=rngs), flax.nnx.Linear(6, 4, rngs=rngs))
    return flax.nnx.state(model, flax.nnx.Param)


def equinox_tree() -> Any:
    return equinox.filter(equinox.nn.MLP(8, 4, 6, 1, key=jax.random.key(1)), equinox.is_inexact_array)


# Each holds the same two layers, 8 by 6 and 6 by 4, with biases.
TREES: dict[str, Callable[[], Any]] = {
    "dict": lambda: params_like({"w": (8, 6), "head": (6, 4), "b": (6,)}),
    "tuples and lists": lambda: params_like(([(8, 6), (6,)], ([(6, 4)], {}))),
    "named tuples": lambda: params_like([Layer((8, 6), (6,)), Layer((6, 4), None)]),
    "haiku": haiku_tree,
    "linen": linen_tree,
    "nnx": nnx_tree,
    "equinox": equinox_tree,
}


def params_like(shapes: Any) -> Any:
    """Normal float32 parameters, other ones for each shape's position."""
    is_shape = lambda node: isinstance(node, tuple) and all(isinstance(length, int) for length in node)  # noqa: E731
    flat, treedef = jax.tree.flatten(shapes, is_leaf=is_shape)
    draw = lambda i, shape: jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.unflatten(treedef, [draw(i, shape) for i, shape in enumerate(flat)])


def loss(params: Any) -> jax.Array:
    """Half the squared distance to a point that is not sparse."""
    aim = lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape), p.dtype)  # noqa: E731
    return sum(jnp.sum((leaf - aim(leaf)) ** 2) / 2 for leaf in jax.tree.leaves(params))


def gradient(params: Any) -> Any:
    """Of the loss."""
    return jax.grad(loss)(params)


def score_arguments(params: Any) -> dict[str, Any]:
    """What some updaters need beside gradients: norms of the layers' inputs, and the Hessian times the gradient."""
    norms = lambda p: jnp.arange(1.0, p.shape[-2] + 1) if p.ndim > 1 else None  # noqa: E731
    return {"activations": jax.tree.map(norms, params), "hessian_gradient": gradient(params)}


def make_step(tx: optax.GradientTransformation) -> Callable:
    """One step of a loop that knows nothing of sparsity; the extra arguments are all that any optimizer asks for."""

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss, "unknown": 1.0}
        extra |= score_arguments(params)
        updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def kept_counts(params: Any, opt_state: Any) -> tuple[int, ...]:
    """Entries kept of w and of head."""
    masks = core.unpack_masks(params, core.find_sparse_state(opt_state).masks)
    count = lambda name: int(masks[name].sum()) if jax.tree.leaves(masks[name]) else params[name].size  # noqa: E731
    return count("w"), count("head")


def assert_on_mask(params: Any, opt_state: Any) -> None:
    """Every pruned entry is +0, not just small or -0."""
    masks = core.unpack_masks(params, core.find_sparse_state(opt_state).masks)
    for param, mask in zip(jax.tree.leaves(params), jax.tree.structure(params).flatten_up_to(masks), strict=True):
        if jax.tree.leaves(mask):
            pruned = np.asarray(param)[np.asarray(mask) == 0]
            assert not pruned.any()
            assert not np.signbit(pruned).any()


def assert_same(tree: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@functools.cache
def trajectory(row: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """The jitted step of a row, and parameters and state before each step and after the last."""
    tx = make_updater(row).wrap_optax(inner())
    step, params = quick_jit(make_step(tx)), TREES["dict"]()
    states = [(params, tx.init(params))]
    for _ in range(STEPS):
        states.append(step(*states[-1]))
    return step, states


def equations(jaxpr: Any, into_branches: bool) -> Iterator[Any]:
    """Every operation of a program, at any depth."""
    for equation in jaxpr.eqns:
        yield equation
        if into_branches or equation.primitive.name != "cond":
            for inner_jaxpr in jaxprs_in_params(equation.params):
                yield from equations(inner_jaxpr, into_branches)
