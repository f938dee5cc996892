"""How the state is partitioned: by structure, for any optimizer, and never so that a mesh can't divide it."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from sparse_plugins import core, t5
from tests.t5 import t5x_stand_in
from tests.t5.tiny import AXES, CASES, LAYERS, RULES, WINDOW, parameters, train_state_shape, updater

SPECS = {tuple(name.split("/")): axes for name, (_, axes) in LAYERS.items()}
MATRICES = {path: axes for path, axes in SPECS.items() if len(axes) > 1}
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "adamw, clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1, 0, 9))),
    "rmsprop": lambda: optax.rmsprop(0.1, centered=True),
    "lion": lambda: optax.lion(0.1),
    "novograd": lambda: optax.novograd(0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(0.1),
    "masked": lambda: optax.masked(optax.adam(0.1), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "several steps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "averages": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=8),
}


def sparse_state_and_axes(tx, **settings):
    wrapped = updater("magnitude", **WINDOW, **settings).wrap_optax(tx)
    state = jax.eval_shape(wrapped.init, parameters())
    return state, t5.state_axes(state, parameters(), AXES)


def is_spec(node):
    return node is None or isinstance(node, PartitionSpec)


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_spec)[0]
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_shaped_like_a_parameter_has_its_axes_and_scalars_none(name):
    state, axes = sparse_state_and_axes(OPTIMIZERS[name]())
    found = by_path(axes.inner_state)
    for path, leaf in by_path(state.inner_state).items():
        owners = [name for name in LAYERS if path.endswith(name)]
        if owners and leaf.shape == LAYERS[owners[0]][0]:
            assert found[path] == LAYERS[owners[0]][1], path
        elif leaf.shape == ():
            assert not found[path], path
    assert axes.count is axes.rng is None
    assert not any(by_path(axes.target_sparsities).values())


def test_masks_and_dense_weights_of_parameters_follow_them():
    ste = updater("magnitude_ste", use_packed_masks=False).wrap_optax(optax.sgd(0.1))
    state = jax.eval_shape(ste.init, parameters())
    axes = t5.state_axes(state, parameters(), AXES)
    for tree in (axes.masks, axes.dense_params):
        found = {path: leaf for path, leaf in flatten_dict(tree).items() if leaf != core.NOT_PRUNED}
        assert found == MATRICES


def test_a_packed_mask_keeps_all_axes_but_one_that_a_mesh_might_not_divide():
    state, _ = sparse_state_and_axes(optax.sgd(0.1))
    axes = t5.state_axes(state, parameters(), AXES, devices=8)
    found = {"/".join(path): leaf for path, leaf in flatten_dict(axes.masks).items() if leaf != core.NOT_PRUNED}
    assert found == {
        "encoder/attention/query/kernel": PartitionSpec(None, "joined_kv"),  # 16 rows in 2 bytes
        "encoder/attention/out/kernel": PartitionSpec(None, "embed"),  # 24 in 3
        "encoder/relpos_bias/rel_embedding": PartitionSpec("heads", None),  # 32 columns in 4
        "token_embedder/embedding": PartitionSpec("vocab", "embed"),  # 64 rows in 8
    }


@pytest.mark.parametrize("devices", [1, 2, 6, 8, 16, 24])
@pytest.mark.parametrize("pruner", ["magnitude", "magnitude_ste"])
def test_any_mesh_that_divides_the_parameters_divides_their_state(pruner, devices):
    """Upstream gave packed masks the axes of the parameters: 24 rows over 8 devices became 3 rows over 8."""
    tx = updater(pruner, **WINDOW).wrap_optax(OPTIMIZERS["adafactor"]())
    state = jax.eval_shape(tx.init, parameters())
    axes = t5.state_axes(state, parameters(), AXES, devices)
    for size in (size for size in range(1, devices + 1) if devices % size == 0):
        mesh = AbstractMesh((size,), ("model",))
        for name in ("embed", "joined_kv", "heads", "relpos_buckets", "vocab"):
            on_mesh = functools.partial(over_mesh, mesh=mesh, divided=name)
            try:
                jax.tree.map(on_mesh, AXES, parameters())
            except ValueError:
                continue  # T5X couldn't train the dense model there either
            jax.tree.map(on_mesh, axes, state, is_leaf=is_spec)


def test_the_axes_of_a_parameter_would_not_do_for_its_packed_mask():
    mesh = AbstractMesh((8,), ("model",))
    over_mesh(AXES["encoder"]["attention"]["out"]["kernel"], jnp.zeros((24, 16)), mesh, divided="joined_kv")
    with pytest.raises(ValueError, match="divide"):
        over_mesh(AXES["encoder"]["attention"]["out"]["kernel"], jnp.zeros((3, 16)), mesh, divided="joined_kv")


def over_mesh(spec, leaf, mesh, divided):
    """Raises ValueError if an array can't be divided along an axis of this name."""
    placed = PartitionSpec(*("model" if name == divided else None for name in spec or ()))
    NamedSharding(mesh, placed).shard_shape(leaf.shape)


def test_factored_moments_have_the_axes_they_were_not_averaged_over():
    factored = sparse_state_and_axes(OPTIMIZERS["adafactor"]())[1].inner_state[0]
    query = lambda tree: tree["encoder"]["attention"]["query"]["kernel"]  # noqa: E731
    assert (query(factored.v_row), query(factored.v_col)) == (PartitionSpec("embed"), PartitionSpec("joined_kv"))
    assert not query(factored.v)
    assert factored.v["encoder"]["norm"]["scale"] == PartitionSpec("embed")


def test_moments_of_adafactor_of_t5x_do_so_too_one_record_per_parameter():
    state = train_state_shape(CASES["rigl, Adafactor"]())
    record = state.as_logical_axes().param_states.inner_state["encoder"]["attention"]["query"]["kernel"]
    assert (record.v_row, record.v_col, record.v) == (PartitionSpec("embed"), PartitionSpec("joined_kv"), None)


@pytest.mark.parametrize(
    ("shape", "of", "names", "expected"),
    [
        ((12,), (12, 12), ("embed", "mlp"), None),  # averaged over which of the two?
        ((12,), (12, 4, 8), ("embed", "heads", "kv"), ("embed",)),
        ((4, 8), (12, 4, 8), ("embed", "heads", "kv"), ("heads", "kv")),
        ((3, 12, 4), (12, 4), ("embed", "mlp"), (None, "embed", "mlp")),  # a history of updates
        ((1, 4), (16, 4), ("embed", "mlp"), (None, "mlp")),
        ((5,), (12, 4), ("embed", "mlp"), None),
        ((12, 4), (12, 4), ("embed",), ("embed", None)),
    ],
)
def test_axes_are_told_by_their_lengths(shape, of, names, expected):
    found = t5.state_axes({"w": jnp.zeros(shape)}, {"w": jnp.zeros(of)}, {"w": PartitionSpec(*names)}, 8)["w"]
    assert (None if found is None else tuple(found)) == expected


def test_a_parameter_without_names_has_a_state_without():
    found = t5.state_axes(optax.trace(0.9).init({"w": jnp.zeros((8, 8))}), {"w": jnp.zeros((8, 8))}, {"w": None})
    assert found.trace["w"] is None


def test_axes_of_another_model_are_an_error():
    with pytest.raises(ValueError, match="logical axes and the parameters have different tree structures"):
        t5.state_axes((), parameters(), {"encoder": AXES["encoder"]})


def test_logical_axes_of_a_train_state_have_its_structure():
    state = train_state_shape(CASES["magnitude_ste, momentum"]())
    axes = state.as_logical_axes()
    assert jax.tree.structure(axes.param_states, is_leaf=is_spec) == jax.tree.structure(state.param_states)
    assert axes.params == state.params_axes
    assert axes.step is None
    mesh_axes = t5x_stand_in.PjitPartitioner(RULES).get_mesh_axes(state)
    assert mesh_axes.params["encoder"]["attention"]["query"]["kernel"] == PartitionSpec(None, "model")
    assert jax.tree.structure(mesh_axes, is_leaf=is_spec) == jax.tree.structure(state)
