"""NNX models that lose their pruned channels, train on, and are read from checkpoints of the small model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sparse_plugins import core, vision

X = jax.random.normal(jax.random.key(0), (6, 4))


class Normalized(nnx.Module):
    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


@nnx.jit
def step(model: Any, optimizer: Any) -> None:
    optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(X) ** 2))(model))


def arrays(node: Any) -> list[Any]:
    plain = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    return [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(node)))]


def test_a_model_loses_its_pruned_channels_trains_on_and_comes_back_from_a_checkpoint() -> None:
    tx = optax.sgd(0.1, momentum=0.9)
    model = Normalized()
    with jax.numpy_rank_promotion("allow"):
        graph = vision.nnx_channel_graph(model, X)
        words = {"sparsity": 0.5, "scheduler": core.OneShotSchedule(0), "structure": core.ChannelGroups(graph)}
        optimizer = vision.Optimizer(model, tx, "magnitude", **words)
        with pytest.raises(ValueError, match="masks still change"):
            vision.nnx_shrunk(model, optimizer, graph, tx)
        step(model, optimizer)
        small, smaller, left = vision.nnx_shrunk(model, optimizer, graph, tx)
        shapes = {small.first.kernel.shape, small.norm.mean.shape, small.norm.scale.shape, small.last.kernel.shape}
        assert shapes == {(4, 4), (4,), (4, 3)}
        moments = nnx.as_pure(smaller.opt_state).inner_state[0].trace
        assert (moments["last"]["kernel"].shape, int(smaller.step[...])) == ((4, 3), 1)
        assert model.first.kernel.shape == (4, 8), "it stays as it is"

        again = vision.nnx_narrow(Normalized(1), graph, left.kept)
        optimizer_again = vision.Optimizer(again, tx, left.updater)
        for restored, original in ((again, small), (optimizer_again, smaller)):
            nnx.update(restored, jax.tree.map(lambda leaf: leaf, nnx.state(original)))
        for _ in range(2):
            for each in ((model, optimizer), (small, smaller), (again, optimizer_again)):
                step(*each)
            for mine, theirs in zip(arrays((again, optimizer_again)), arrays((small, smaller)), strict=True):
                np.testing.assert_array_equal(mine, theirs)
        (channels,) = left.kept.values()
        np.testing.assert_allclose(model.first.kernel[...][:, channels], small.first.kernel[...], atol=1e-4)
        np.testing.assert_allclose(model.norm.mean[...][channels], small.norm.mean[...], atol=1e-5)
        model.eval()
        small.eval()
        np.testing.assert_allclose(model(X), small(X), rtol=1e-3, atol=1e-4)


def test_the_optimizer_of_nnx_prunes_groups_of_the_graph_and_its_model_shrinks() -> None:
    tx = optax.sgd(0.1, momentum=0.9)
    model = Normalized()
    with jax.numpy_rank_promotion("allow"):
        graph = vision.nnx_channel_graph(model, X)
        groups, schedule = core.ChannelGroups(graph), core.OneShotSchedule(0)
        sparse = core.sparsify(tx, "magnitude", sparsity=0.5, scheduler=schedule, structure=groups)
        params = nnx.state(model, nnx.Param)
        assert "first/kernel  (4, 8)  channels of params/first/kernel" in str(core.plan(sparse, params))
        optimizer = nnx.Optimizer(model, sparse, wrt=nnx.Param)
        step(model, optimizer)
        small, smaller, left = vision.nnx_shrunk(model, optimizer, graph, tx)
        assert {group: len(channels) for group, channels in left.kept.items()} == {"params/first/kernel": 4}
        for _ in range(2):
            step(model, optimizer)
            step(small, smaller)
        (channels,) = left.kept.values()
        np.testing.assert_allclose(model.first.kernel[...][:, channels], small.first.kernel[...], atol=1e-4)
        model.eval()
        small.eval()
        np.testing.assert_allclose(model(X), small(X), rtol=1e-3, atol=1e-4)


class Called(nnx.Module):
    """Called with arrays by name, flags by place, and Rngs that count its calls."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last, self.dropout = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs), nnx.Dropout(0.5)

    def __call__(self, x: jax.Array, train: bool = True, *, mask: Any = None, rngs: Any = None) -> jax.Array:
        hidden = nnx.relu(self.first(x))
        if train:
            hidden = self.dropout(hidden, rngs=rngs)
        return self.last(hidden) if mask is None else self.last(hidden) * mask


def test_a_small_model_is_called_as_the_whole_one_is_and_shrinks_again() -> None:
    model, tx, mask = Called(), optax.sgd(0.1), jnp.arange(3.0)
    with jax.numpy_rank_promotion("allow"):

        def shrunk(model: Any, graph: core.ChannelGraph) -> tuple[Any, Any]:
            structure = core.ChannelGroups(graph)
            optimizer = vision.Optimizer(model, tx, "static_sparse", sparsity=0.5, structure=structure)
            small, _, left = vision.nnx_shrunk(model, optimizer, graph, tx)
            return small, left

        small, left = shrunk(model, vision.nnx_channel_graph(model, X, False, mask=mask))
        np.testing.assert_allclose(small(X, False, mask=mask), model(X, False, mask=mask), atol=1e-5)
        # The graph of training knows the numbers that dropout draws; the second optimizer puts `small` on its masks.
        smaller, left_again = shrunk(small, vision.nnx_channel_graph(small, X, rngs=nnx.Rngs(3)))
        assert [len(*found.kept.values()) for found in (left, left_again)] == [4, 2]
        assert (smaller.first.kernel.shape, small.first.kernel.shape) == ((4, 2), (4, 4))
        every = [nnx.Rngs(3) for _ in range(3)]
        for _ in range(2):
            outputs = [node(X, rngs=rngs) for node, rngs in zip((model, small, smaller), every, strict=True)]
            np.testing.assert_allclose(outputs[1], outputs[2], atol=1e-5)
        assert [int(rngs.default.count[...]) for rngs in every] == [2, 2, 2]
