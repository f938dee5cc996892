"""Blocks that T5X scans over are pruned block by block, by the names that the model gives its axes."""

import flax
import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

from sparse_plugins import core
from tests.t5 import t5x_stand_in
from tests.t5.tiny import definition, optimizer

SHAPES = {
    "kernel": ((8, 3, 16), PartitionSpec("embed", "layers", "mlp")),
    "scale": ((8, 3), PartitionSpec("embed", "layers")),
    "odd": ((6, 4), PartitionSpec("a", None)),
}


def test_layers_of_a_scanned_stack_have_their_counts_whatever_the_optimizer_is() -> None:
    draw = np.random.default_rng(0).normal
    params = {"blocks": {name: draw(size=shape).astype(np.float32) for name, (shape, _) in SHAPES.items()}}
    axes = {"blocks": {name: names for name, (_, names) in SHAPES.items()}}
    for dense in (optax.sgd(0.1), t5x_stand_in.Adafactor()):
        sparse = optimizer("static_sparse", dense, dist_type="uniform")
        variables = flax.core.freeze({"params": params, "params_axes": axes})
        state = t5x_stand_in.FlaxOptimTrainState.create(sparse, variables)
        blocks = state.params["blocks"]
        assert np.count_nonzero(blocks["kernel"], axis=(0, 2)).tolist() == [32] * 3
        assert np.count_nonzero(blocks["scale"]) == 24, "scales stay dense, stacked or not"
        plan = core.describe_plan(definition(state).updater, params)
        assert next(row for row in plan.splitlines() if "kernel/2" in row).endswith(" 32 of 128")
        assert "one layer (not described)" in plan
        grads = jax.tree.map(np.ones_like, state.params)
        after = state.apply_gradient(grads, learning_rate=0.1)
        assert np.count_nonzero(after.params["blocks"]["kernel"], axis=(0, 2)).tolist() == [32] * 3
