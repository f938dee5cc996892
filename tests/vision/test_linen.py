"""A Flax Linen script that changes the base class of its train state."""

import functools
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding

from sparse_plugins import core, vision
from tests.quick import quick_jit
from tests.vision.networks import (
    ALGORITHMS,
    IMAGES,
    ConvNet,
    assert_on_masks,
    dense_optimizer,
    half,
    make_updater,
    squares,
    variables,
)


class State(vision.TrainState):
    batch_stats: Any


@functools.partial(jax.jit, static_argnums=0)
def create(algorithm: str, collections: Any) -> State:
    return State.create(apply_fn=ConvNet().apply, tx=dense_optimizer(), updater=make_updater(algorithm), **collections)


@jax.jit
def step(state: State) -> State:
    def loss(params: Any) -> Any:
        collections = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = state.apply_fn(collections, IMAGES, train=True, mutable="batch_stats")
        return squares(logits), changed["batch_stats"]

    grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats)


@functools.cache
def run(algorithm: str) -> list[State]:
    states = [create(algorithm, variables())]
    for _ in range(6):
        states.append(step(states[-1]))
    return states


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parameters_are_on_their_masks_from_step_0_on(algorithm: str) -> None:
    for number, state in enumerate(run(algorithm)):
        assert int(state.step) == int(state.opt_state.count) == number
        assert_on_masks(state.params, state.opt_state, algorithm, number)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parameters_are_the_forward_view_and_dense_weights_stay_in_the_state(algorithm: str) -> None:
    updater, state = make_updater(algorithm), run(algorithm)[3]
    jax.tree.map(np.testing.assert_array_equal, state.params, updater.pre_forward_update(state.params, state.opt_state))
    dense = jax.tree.leaves(state.opt_state.dense_params)
    assert [bool((weights != 0).all()) for weights in dense] == [True] * 2 * (algorithm == "magnitude_ste")


def test_batch_norm_is_trained_and_its_statistics_are_those_of_the_sparse_model() -> None:
    start, after = run("rigl")[:2]
    collections = {"params": start.params, "batch_stats": start.batch_stats}
    _, changed = jax.jit(functools.partial(ConvNet().apply, train=True, mutable="batch_stats"))(collections, IMAGES)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, after.batch_stats, changed["batch_stats"])
    assert jax.tree.leaves(after.opt_state.masks["norm"]) == []
    assert (run("rigl")[-1].params["norm"]["scale"] != 1).any()


def test_a_run_goes_on_from_its_bytes_bit_for_bit() -> None:
    states = run("rigl")
    restored = flax.serialization.from_bytes(states[0], flax.serialization.to_bytes(states[3]))
    again = step(restored)
    for leaf, expected in zip(jax.tree.leaves(again), jax.tree.leaves(states[4]), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_the_bytes_of_a_dense_run_are_refused() -> None:
    dense = flax.training.train_state.TrainState.create(
        apply_fn=None, params=variables()["params"], tx=dense_optimizer()
    )
    content = flax.serialization.to_state_dict(dense) | {"batch_stats": variables()["batch_stats"]}
    with pytest.raises(ValueError, match="masks"):
        flax.serialization.from_state_dict(run("rigl")[0], content)


def small(params: Any, updater: core.BaseUpdater, tx: optax.GradientTransformation | None = None) -> vision.TrainState:
    return vision.TrainState.create(apply_fn=None, params=params, tx=tx or optax.sgd(0.1), updater=updater)


def test_extra_arguments_reach_the_optimizer_and_misspelt_fields_do_not() -> None:
    state = small({"kernel": jnp.ones((4, 4))}, half(), optax.contrib.reduce_on_plateau())
    after = state.apply_gradients(grads=state.params, extra_args={"value": 7.0})
    assert float(after.opt_state.inner_state.best_value) == 7.0
    assert after.tx is state.tx
    assert int(after.step) == 1
    with pytest.raises(TypeError, match="batch_stat"):
        state.apply_gradients(grads=state.params, extra_args={"value": 7.0}, batch_stat=None)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        x = nn.Dense(16, kernel_init=nn.with_partitioning(init, (None, "model")), name="a")(x)
        return nn.Dense(8, kernel_init=nn.with_logical_partitioning(init, ("model", None)), name="b")(x)


def test_boxed_parameters_are_sharded_with_their_masks_under_jit() -> None:
    def init() -> vision.TrainState:
        params = Boxed().init(jax.random.key(0), jnp.ones((1, 16)))["params"]
        return small(params, half(), optax.sgd(0.1, momentum=0.9))

    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = vision.get_partition_spec(jax.eval_shape(init))
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    state = jax.jit(init, out_shardings=places)()
    spec = lambda box: tuple(box["a"]["kernel"].value.sharding.spec)  # noqa: E731
    assert spec(state.opt_state.masks) == spec(state.opt_state.inner_state[0].trace) == (None, "model")
    assert spec(state.opt_state.target_sparsities) == ()
    state = jax.jit(lambda state: state.apply_gradients(grads=state.params), out_shardings=places)(state)
    assert isinstance(state.params["a"]["kernel"], nn.Partitioned)
    kernels = nn.unbox(state.params)
    assert [int(jnp.count_nonzero(kernels[name]["kernel"])) for name in "ab"] == [128, 64]


class Fp8(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(8, dot_general_cls=nn.Fp8DirectDotGeneralOp, name="head")(x)


def test_fp8_scales_are_overwritten_and_only_weights_are_sparse() -> None:
    x = jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)
    collections = jax.jit(Fp8().init)(jax.random.key(0), x)
    state = small(collections, half())
    grads = jax.jit(jax.grad(lambda collections: squares(Fp8().apply(collections, x))))(state.params)
    after = state.apply_gradients(grads=grads)
    for params in (state.params, after.params):
        assert int(jnp.count_nonzero(params["params"]["head"]["kernel"])) == 32
    scales = "_overwrite_with_gradient"
    jax.tree.map(np.testing.assert_array_equal, state.params[scales], collections[scales])
    jax.tree.map(np.testing.assert_array_equal, after.params[scales], grads[scales])


def test_n_by_m_groups_of_a_convolution_run_along_its_input_axis() -> None:
    """An image has three channels, fewer than a group of four."""
    updater = make_updater("magnitude_ste", sparsity_type="2:4", sparsity=0.5)
    draw = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)  # noqa: E731
    params = {"conv": {"kernel": draw(3, 3, 4, 8)}, "stem": {"kernel": draw(3, 3, 3, 8)}}
    params = jax.jit(lambda params: small(params, updater).params)(params)
    for layer in params.values():
        np.testing.assert_array_equal((layer["kernel"] != 0).sum(axis=2), 2)
        assert len(set((layer["kernel"] != 0).sum(axis=3).ravel().tolist())) > 1


def test_a_trained_state_is_written_as_a_sparse_file_and_read_again(tmp_path: Path) -> None:
    state = run("rigl")[-1]
    core.export.save_sparse(tmp_path / "model.npz", state.params, state.opt_state.masks)
    params, _ = core.export.load_sparse(tmp_path / "model.npz", state.params)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


class Tokens(nn.Module):
    """What has two axes and is no kernel."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(6, 8)(tokens) + self.param("pos_embedding", nn.initializers.ones, (1, 4, 8))
        return nn.Dense(8)(nn.LayerNorm(feature_axes=(-2, -1))(x))


def test_kernels_only_leaves_embeddings_and_norm_scales_with_two_axes_dense() -> None:
    shapes = jax.eval_shape(Tokens().init, jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, float(leaf.ndim > 1)), shapes)
    assert params["LayerNorm_0"]["scale"].shape == (4, 8)
    state = small(params, half(filter_fn=core.kernels_only))
    assert [float((leaf == 0).mean()) for leaf in jax.tree.leaves(state.opt_state.target_sparsities)] == [0.0]
    summary = core.summarize_sparsity(state.params, masks=state.opt_state.masks)
    assert float(summary["Dense_0/kernel"]) == float(summary["_total_sparsity"]) == 0.5
    assert float(summary["_nparams"]) == 64
    assert float(summary["Embed_0/embedding"]) == float(summary["pos_embedding"]) == 0.0
    assert float(summary["Dense_0/bias"]) == 1.0  # zeros that are no sparsity


def test_integers_among_the_parameters_stay_as_they_are() -> None:
    params = {"kernel": jnp.ones((4, 4)), "steps": jnp.arange(4).reshape(2, 2)}
    tx = optax.partition({"train": optax.sgd(0.1), "keep": optax.set_to_zero()}, {"kernel": "train", "steps": "keep"})
    state = small(params, half(), tx)
    after = state.apply_gradients(grads=params)
    assert [int(jnp.count_nonzero(each.params["kernel"])) for each in (state, after)] == [8, 8]
    np.testing.assert_array_equal(after.params["steps"], params["steps"])
    with pytest.raises(ValueError, match="prunes 'steps', which is no floating"):
        small(params, half(rules=[("steps", 0.5)]), tx)


KERNEL = {"kernel": jnp.ones((4, 4))}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"updater": optax.sgd(0.1)}, TypeError, "updater is a GradientTransformationExtraArgs; give an updater"),
        ({"updater": core.RigL}, ValueError, "sparsity is missing"),
        ({"updater": "rigl", "sparsity": 0.5}, ValueError, "give total_steps="),
        ({"updater": "rigl", "sparsity": 0.5, "totl_steps": 9}, ValueError, "'totl_steps' is unknown"),
        ({"tx": half()}, TypeError, "give an optax transformation"),
        ({"tx": half().wrap_optax(optax.sgd(0.1))}, TypeError, "sparse already"),
        ({"tx": optax.chain(optax.clip(1.0), half().wrap_optax(optax.sgd(0.1)))}, TypeError, "sparse already"),
        ({"params": {}}, ValueError, "would prune nothing: the parameters are {}"),
        ({"params": {"kernel": jnp.ones((4, 4)), "rng": jax.random.key(0)}}, TypeError, "'rng' is no array of numbers"),
        ({"params": {"weights": jnp.ones((4, 4))}}, ValueError, r"nothing: none of \['weights'\] is"),
        ({"params": {"kernel": jnp.ones(4)}}, ValueError, "would prune nothing"),
        ({"updater": half(rules=[("kernle", 0.5)])}, ValueError, "kernle"),
    ],
)
def test_what_cannot_be_trained_sparsely_is_refused_when_built(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    fields = {"apply_fn": None, "params": KERNEL, "tx": optax.sgd(0.1), "updater": half(filter_fn=core.kernels_only)}
    with pytest.raises(error, match=message):
        vision.TrainState.create(**fields | arguments)


def test_a_state_loses_its_pruned_channels_and_trains_on() -> None:
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
            return nn.Dense(3)(x)

    class State(vision.TrainState):
        batch_stats: Any

    model, x = Normalized(), jax.random.normal(jax.random.key(0), (6, 4))
    variables = model.init(jax.random.key(1), x, train=False)
    training = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    graph = core.channel_graph(training, variables, x)
    words = {"sparsity": 0.5, "scheduler": core.OneShotSchedule(0), "structure": core.ChannelGroups(graph)}
    tx = optax.sgd(0.1, momentum=0.9)  # Adam makes steps of the rounding of a bias before batch norm
    state = State.create(apply_fn=training, tx=tx, updater="magnitude", **words, **variables)
    with pytest.raises(ValueError, match=r"masks still change \(the last time at step 0\)"):
        vision.shrunk(state, graph, tx)

    def step(state: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, changed = state.apply_fn({"params": params, "batch_stats": state.batch_stats}, x)
            return jnp.sum(logits**2), changed

        grads, changed = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, **changed)

    step = quick_jit(step)
    state = step(state)
    small, left = vision.shrunk(state, graph, tx)
    straight_through = state.replace(opt_state=state.opt_state._replace(dense_params=state.params))
    assert vision.shrunk(straight_through, graph, tx)[0].opt_state.dense_params == ()  # of no use, and not small
    assert small.params["Dense_0"]["kernel"].shape == (4, 4)
    assert small.batch_stats["BatchNorm_0"]["mean"].shape == (4,)
    assert small.opt_state.inner_state[0].trace["Dense_1"]["kernel"].shape == (4, 3)
    evaluate = left.narrow(functools.partial(model.apply, train=False))
    for _ in range(2):
        outputs, small_outputs = (
            apply({"params": s.params, "batch_stats": s.batch_stats}, x)
            for s, apply in ((state, functools.partial(model.apply, train=False)), (small, evaluate))
        )
        np.testing.assert_allclose(outputs, small_outputs, atol=1e-5)
        state, small = step(state), step(small)
    wrong = core.channel_graph(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}, x
    )
    with pytest.raises(ValueError, match=r"the graph is of \['a', 'b'\]; make it of variables"):
        vision.shrunk(small, wrong, tx)
