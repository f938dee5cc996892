"""The seed of a run reaches its random masks in every study; results depend on it."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.atari import train as atari
from experiments.atari.config import AtariSettings
from experiments.common.supervised.train import initial_state
from experiments.fed_emnist.config import FederatedSettings
from experiments.harness.cells import Cell, Run
from experiments.minatar import train as minatar
from experiments.minatar.config import MinAtarSettings
from sparse_plugins import core

PARAMS = {"layer": {"kernel": jnp.ones((16, 16))}}


def of_rounds(seed: int) -> Any:
    """The federated studies: strokes, digits, EMNIST, structures."""
    return FederatedSettings(name="x").updater(Run(Cell("", "static_sparse", 0.9), seed)).init_state(PARAMS)


def of_steps(seed: int) -> Any:
    """The studies of vision and T5."""
    updater = core.create_updater_from_config(algorithm="static_sparse", sparsity=0.9)
    return initial_state(lambda key: (PARAMS, {}), updater, optax.sgd(0.1), jax.random.key(seed)).optimizer


def of_minatar(seed: int) -> Any:
    """The fused studies of agents."""
    config = MinAtarSettings(name="x", algorithms=("static_sparse",), sparsities=(0.9,))
    agent = minatar.agent(config, Cell("Breakout", "static_sparse", 0.9))
    return agent.init(jax.random.key(seed), jnp.zeros((1, 10, 10, 4))).sparse_state


def of_atari(seed: int) -> Any:
    """The studies of agents on environments of the host."""
    config = AtariSettings(name="x", algorithms=("static_sparse",), sparsities=(0.9,))
    agent = atari.agent(config, Cell("Pong", "static_sparse", 0.9))
    return agent.init(jax.random.key(seed), jnp.zeros((1, 84, 84, 4), jnp.uint8)).sparse_state


@pytest.mark.parametrize("start", [of_rounds, of_steps, of_minatar, of_atari])
def test_seeds_have_masks_of_their_own_and_repeat(start: Callable[[int], Any]) -> None:
    masks = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(start(seed).masks)]).tobytes()
        for seed in (0, 1, 2, 0)
    ]
    assert masks[0] == masks[3]
    assert all(mask != next_mask for mask, next_mask in itertools.pairwise(masks))
