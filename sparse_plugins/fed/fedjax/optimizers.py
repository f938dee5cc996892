"""Sparse server and client optimizers: drop-in `fedjax.Optimizer`s.

What a server broadcasts says which weights are in use: one that is pruned is exactly 0, one that is kept never is. So a
client needs nothing but the parameters to train inside the mask.
"""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import fedjax
import jax
import jax.numpy as jnp
import optax

from sparse_plugins import core
from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.layers.layers_at_hand import layers_at_hand
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.trees import exportable
from sparse_plugins.core.updater_defaults import AnyUpdater
from sparse_plugins.fed.mask_change import can_change_masks, with_fields
from sparse_plugins.fed.mask_in_params import broadcast_masks, first_broadcast, mark_in_use
from sparse_plugins.fed.updater_in_rounds import updater_in_rounds
from sparse_plugins.wire.trees import PyTree

__all__ = [
    "ClientOptimizerState",
    "first_params",
    "optax_transformation",
    "sparse_client_optimizer",
    "sparse_server_optimizer",
    "updater_of_server",
]


def sparse_server_optimizer(
    optimizer: optax.GradientTransformation | fedjax.Optimizer,
    updater: AnyUpdater,
    *,
    rounds: int | None = None,
    skip_broken_rounds: bool = False,
    **words: Any,
) -> fedjax.Optimizer:
    """Makes the server of a federated algorithm keep its parameters sparse.

    The result goes wherever a FedJAX algorithm asks for its server optimizer: `fed_avg`, `fed_prox`,
    `agnostic_fed_avg`, `hyp_cluster` and `apfl` run with it as they are. After each call the parameters are
    zero outside the mask and not zero inside, so what the next round broadcasts is sparse and carries its mask:
    a weight that would land on 0 stops at the smallest normal number beside it, and a layer that is pruned whole
    starts with a negative zero. With `core.NoPruning` every bit is that of the dense optimizer, zeros included: let
    its clients use an ordinary optimizer, `sparse_client_optimizer` would take these zeros for a mask.

    These algorithms call their server optimizer once a round, so the steps of the updater's schedule are
    rounds (`hyp_cluster`: rounds in which a cluster had clients). A round's mean delta is applied in every
    round, also when masks are updated: it is the work of many clients, and `skip_gradients` would throw it away.

    A round in which nobody had an example to learn from has a mean delta of 0, and nothing to rank weights by. If
    masks are to be updated by gradients (RigL and related algorithms, saliency) in such a round, it warns, and the next
    round updates them instead: the schedule waits, so that its target is reached, later by as many rounds.

    Clients train densely from the sparse parameters unless they use `sparse_client_optimizer`, and personal
    models such as those of `apfl` stay dense. `mime` and `mime_lite` have no server optimizer, what they ask
    for runs on the clients: use `sparsify` for them.

    Args:
        optimizer: What turns a round's mean delta into an update: an optax transformation, or a
            `fedjax.Optimizer` made from one, such as `fedjax.optimizers.adam(0.01)`.
        updater: Which weights to keep, how many and from which round on; a `core.PerModule` too. Or the algorithm, by
            name or class. Servers have no key of their own: for random masks of their own they need updaters of
            another `rng_seed`.
        rounds: Length of the run. Algorithms that change masks while they train need it, unless the schedule is given.
        skip_broken_rounds: Leave out, with a warning, a round whose mean delta is not finite, as one client whose
            training broke makes it: FedJAX's own algorithms refuse nobody's. Model and schedule stay as they were.
        **words: What else `core.sparsify` takes with an algorithm: `sparsity`, `distribution`, `rules`, ... With any
            updater, `model` and `batch`: a `fedjax.Model` and a batch that it takes, or shapes of one. Which axes stack
            layers, and which are inputs and outputs, is then read from `model.apply_for_train`, traced once.

    Returns:
        The optimizer, whose state is a `core.SparseState`. An updater that starts sparse prunes in the first
        call; to start from sparse parameters, too, give `fed.first_params(server_optimizer, params)` to the
        algorithm's `init`.

    Raises:
        TypeError: If `optimizer` is neither of the two or is sparse already, or `updater` is no updater.
        ValueError: If the updater's schedule does not count rounds (`step_unit="round"`). From its `apply`, outside
            `jax.jit`, in a round that is to grow weights by gradients when clients learned, but sent none: deltas of
            clients that train inside the mask say nothing about the rest.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from sparse_plugins import core, fed
        >>> fedjax = fed.import_fedjax()
        >>> at_once = core.OneShotSchedule(target_step=1, step_unit="round")
        >>> server_optimizer = fed.sparse_server_optimizer(
        ...     optax.adam(0.01), "magnitude", sparsity=0.75, scheduler=at_once, rounds=2)
        >>> algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        ...     lambda params, batch, rng: jax.grad(lambda p: jnp.mean((batch["x"] @ p["w"]) ** 2))(params),
        ...     client_optimizer=fedjax.optimizers.sgd(0.1),
        ...     server_optimizer=server_optimizer,
        ...     client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=2, num_epochs=1, seed=0),
        ... )
        >>> state = algorithm.init({"w": jnp.array([[4.0, -1.0], [-3.0, 2.0]])})
        >>> client = b"anna", fedjax.ClientDataset({"x": jnp.eye(2)}), jax.random.key(0)
        >>> for _ in range(2):
        ...     state, _ = algorithm.apply(state, [client])
        ...     print((state.params["w"] == 0).mean())
        0.0
        0.75
    """
    updater = updater_of_server(updater, rounds, words)
    dense = optax_transformation(optimizer)
    updater = with_fields(updater, skip_gradients=False)
    # Two programs: whether there is anything to change masks by is asked outside of both, where one can warn.
    compiled, compiled_with_masks_as_they_are = (
        fedjax.optimizers.create_optimizer_from_optax(variant.wrap_optax(dense))
        for variant in (updater, with_fields(updater, scheduler=core.NoUpdateSchedule()))
    )

    first_check = FirstCheck(updater)

    def apply(grads: PyTree, opt_state: core.SparseState, params: PyTree) -> tuple[core.SparseState, PyTree]:
        first_check(opt_state.count, params, opt_state)  # what became of them since the last round
        if skip_broken_rounds and not _all_finite(grads):
            warnings.warn(
                f"round {int(opt_state.count)}: the mean delta is not finite, as if the training of a client broke, "
                "so the round is left out.",
                RuntimeWarning,
                stacklevel=2,
            )
            return opt_state, params
        if can_change_masks(updater, opt_state, params, grads, delta=grads):
            opt_state, params = compiled.apply(grads, opt_state, params)
        else:
            warnings.warn(
                f"round {int(opt_state.count)}: masks are to change by gradients, but the mean delta is 0, as if no "
                "client had examples; the mask change is put off to the next round.",
                RuntimeWarning,
                stacklevel=2,
            )
            count = opt_state.count
            opt_state, params = compiled_with_masks_as_they_are.apply(grads, opt_state, params)
            opt_state = opt_state._replace(count=count)
        return opt_state, mark_in_use(params, opt_state.masks)

    apply.updater = updater  # type: ignore[attr-defined]  # what core.updater_of finds
    return fedjax.Optimizer(compiled.init, apply)


@jax.jit
def _all_finite(tree: PyTree) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def updater_of_server(updater: AnyUpdater, rounds: int | None, words: Mapping[str, Any]) -> core.BaseUpdater:
    """The updater of a FedJAX server, which counts rounds and knows what the axes of the parameters are.

    Args:
        updater: As in `sparse_server_optimizer`.
        rounds: As in `sparse_server_optimizer`.
        words: As in `sparse_server_optimizer`.

    Raises:
        TypeError: If it is neither an updater nor an algorithm, or the model no `fedjax.Model`.
        ValueError: If the words do not make one, its schedule does not count rounds, or there is a model without a
            batch.

    Example:
        >>> updater_of_server("static_sparse", None, {"sparsity": 0.9}).masks_from_seed
        True
    """
    words = dict(words)
    model, batch = words.pop("model", None), words.pop("batch", None)
    made = updater_in_rounds(updater, rounds, words)
    if (model is None) != (batch is None):
        raise ValueError("a model is traced with a batch of examples: give model= and batch=, or neither.")
    return made if model is None else made.knowing(_layers_of_model(model, batch))


def _layers_of_model(model: Any, batch: Any) -> Layers:
    """The axes of the parameters of a `fedjax.Model`."""
    if not isinstance(model, fedjax.Model):
        raise TypeError(f"model is a {type(model).__name__}; give a fedjax.Model, or layers=core.trace_layers(...).")
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    return layers_at_hand(model.apply_for_train, jax.eval_shape(model.init, key), batch, key)


def first_params(server_optimizer: fedjax.Optimizer, params: PyTree) -> PyTree:
    """Initial parameters with which round 0 is sparse, too, in FedJAX's own algorithms.

    A server optimizer's `init` cannot change parameters: give these to the algorithm's.

    Args:
        server_optimizer: What `sparse_server_optimizer` gave.
        params: Initial parameters, drawn for dense layers.

    Returns:
        Parameters on the first masks, rescaled if the updater's `rescale` says so, and not 0 inside.

    Raises:
        ValueError: If the optimizer has no updater.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core, fed
        >>> updater = core.create_updater_from_config(algorithm="static_sparse", sparsity=0.75)
        >>> server_optimizer = fed.sparse_server_optimizer(optax.sgd(1.0), updater)
        >>> int((fed.first_params(server_optimizer, {"w": jnp.ones((4, 4))})["w"] != 0).sum())
        4
    """
    return first_broadcast(core.updater_of(server_optimizer), params, server_optimizer.init(params))


@exportable("ClientOptimizerState")
class ClientOptimizerState(NamedTuple):
    """State of a sparse client optimizer.

    Attributes:
        masks: bool arrays of the parameters' shapes, True = in use.
        inner_state: State of the wrapped optimizer.
    """

    masks: PyTree
    inner_state: PyTree


def sparse_client_optimizer(optimizer: optax.GradientTransformation | fedjax.Optimizer) -> fedjax.Optimizer:
    """Makes clients train inside the mask that comes with the parameters.

    The result goes wherever a FedJAX algorithm asks for its client optimizer, together with
    `sparse_server_optimizer` for its server. FedJAX calls its `init` for every client with the parameters of the
    broadcast: a weight that is exactly 0 there is pruned, and neither a gradient nor an update reaches it. A
    parameter that is 0 as a whole, such as a bias before the first round, is trained as usual, unless the server
    marked it as pruned whole (a negative zero is its first entry). So the delta that a client uploads is exactly 0
    outside the mask.

    Updaters that grow weights by gradients get no signal from such deltas: use SET, or
    `sparse_federated_averaging`, whose clients send one.

    Args:
        optimizer: What trains the clients: an optax transformation, or a `fedjax.Optimizer` made from one.

    Returns:
        The optimizer.

    Raises:
        TypeError: If `optimizer` is neither of the two.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import fed
        >>> client_optimizer = fed.sparse_client_optimizer(fed.import_fedjax().optimizers.sgd(1.0))
        >>> params = {"w": jnp.array([3.0, 0.0]), "b": jnp.zeros(1)}
        >>> grads = {"w": jnp.ones(2), "b": jnp.ones(1)}
        >>> _, params = client_optimizer.apply(grads, client_optimizer.init(params), params)
        >>> params["w"].tolist(), params["b"].tolist()
        ([2.0, 0.0], [-1.0])
    """
    inner = optax.with_extra_args_support(optax_transformation(optimizer))

    def init(params: PyTree) -> ClientOptimizerState:
        return ClientOptimizerState(broadcast_masks(params), inner.init(params))

    def update(
        grads: PyTree, state: ClientOptimizerState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClientOptimizerState]:
        inside = lambda mask, x, outside=0.0: jnp.where(mask, x, jnp.asarray(outside, jnp.result_type(x)))  # noqa: E731
        updates, inner_state = inner.update(
            jax.tree.map(inside, state.masks, grads), state.inner_state, params, **extra
        )
        # Adding a negative zero keeps the sign of every zero, and with it what says that a layer was pruned whole.
        still = lambda mask, x: inside(mask, x, -0.0)  # noqa: E731
        return jax.tree.map(still, state.masks, updates), ClientOptimizerState(state.masks, inner_state)

    return fedjax.optimizers.create_optimizer_from_optax(optax.GradientTransformationExtraArgs(init, update))


def optax_transformation(
    optimizer: optax.GradientTransformation | fedjax.Optimizer,
) -> optax.GradientTransformation:
    """The optax transformation that an optimizer is or was made from; TypeError if there is none."""
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    if not isinstance(optimizer, fedjax.Optimizer):
        raise TypeError(
            "optimizer must be an optax transformation such as optax.adam(0.01), or a fedjax.Optimizer made "
            f"from one, got {_described(optimizer)}"
        )
    if getattr(optimizer.apply, "__qualname__", "").startswith(f"{sparse_server_optimizer.__name__}."):
        raise TypeError("optimizer is a sparse server optimizer, sparse already; pass the dense one")
    transformation = _closed_over_transformation(optimizer)
    if transformation is None:
        raise TypeError(
            "this fedjax.Optimizer was not made by create_optimizer_from_optax, so the updates to be masked "
            "are out of reach in it; pass the optax transformation"
        )
    return transformation


def _closed_over_transformation(optimizer: fedjax.Optimizer) -> optax.GradientTransformation | None:
    """What `create_optimizer_from_optax` was given: its `apply` holds it as the variable `opt`."""
    apply = inspect.unwrap(optimizer.apply)
    if getattr(apply, "__qualname__", "") != "create_optimizer_from_optax.<locals>.apply":
        return None
    transformation = inspect.getclosurevars(apply).nonlocals.get("opt")
    return transformation if isinstance(transformation, optax.GradientTransformation) else None


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself; build an instance of it"
    if inspect.isroutine(value):
        return f"the function {value.__name__} itself; call it with its arguments"
    return f"a {type(value).__name__}"
