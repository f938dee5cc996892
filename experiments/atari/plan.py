"""What a study is about to do, and how many of its cells fit into memory together."""

import dataclasses
import functools
import math
import os
import types
from typing import Any

import jax
import numpy as np

from experiments.atari.config import AtariSettings
from experiments.atari.train import agent, train_batch
from experiments.common.agents import task
from experiments.common.agents.dqn import agent_plan
from experiments.harness.cells import Cell
from experiments.harness.study import Plan
from sparse_plugins.rl.environments.atari.protocols import machado
from sparse_plugins.rl.loops.vector_step import VectorAgent
from sparse_plugins.rl.replay import Replay

GB = 1e9
PART_OF_MEMORY = 0.8  # programs need some


def replay(config: AtariSettings) -> Replay:
    """The replay of one run."""
    screen: Any = types.SimpleNamespace(frame_shape=machado().frame_shape, frame_dtype=np.uint8)
    return config.loop.replay(screen)


def state_bytes(config: AtariSettings, cell: Cell) -> int:
    """What one run keeps on the device: replay, networks, moments and masks."""
    run = VectorAgent(agent(config, cell), replay(config), config.loop)
    leaves = jax.tree.leaves(jax.eval_shape(run.init, jax.random.key(0)))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def device_memory() -> int:
    """Bytes of memory of the device; on a CPU, those of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fitted(config: AtariSettings) -> AtariSettings:
    """The settings with `together` and `memory_gb` filled in, so that a resumed study has the same batches anywhere."""
    memory = config.memory_gb or round(PART_OF_MEMORY * device_memory() / GB, 1)
    cells = list(config.cells())
    most = sum(cell.group == cells[0].group for cell in cells)
    largest = max(cells, key=lambda cell: cell.width)
    fit = int(memory * GB // (state_bytes(config, largest) * len(config.seeds)))
    return dataclasses.replace(config, memory_gb=memory, together=config.together or min(max(fit, 1), most))


def plan(config: AtariSettings) -> Plan:
    """The plan of a study."""
    config = fitted(config)
    record = {"about": about(config), "changes": config.mask_changes}
    return task.plan_of(config, functools.partial(train_batch, config), described(config), record)


def described(config: AtariSettings) -> str:
    """How many cells there are, in which batches, with how much memory, and when and how sparse the first one gets."""
    batches, cells = list(config.batches()), list(config.cells())
    largest = max(cells, key=lambda cell: cell.width)
    each, most = state_bytes(config, largest), max(map(len, batches)) * len(config.seeds)
    lines = [
        f"{len(cells)} cells of {len(config.seeds)} seeds, {config.steps:,} environment steps each, in batches of"
        f" {', '.join(str(len(batch)) for batch in batches)} cells.",
        f"Memory on the device: {each / GB:.2f} GB a run, {replay(config).bytes() / GB:.2f} of it replay; together"
        f" {most * each / GB:.1f} GB of {config.memory_gb} GB. A checkpoint is as large, and two are kept.",
    ]
    seen = jax.ShapeDtypeStruct(replay(config).observation_shape, np.uint8)
    clock = dataclasses.replace(config.loop.clock, frames_per_step=4)
    lines.append(agent_plan(cells, functools.partial(agent, config), lambda cell: seen, clock))
    return "\n".join(lines)


def about(config: AtariSettings) -> str:
    """What is trained, for the report."""
    start, end = config.mask_changes
    network = "Nature's network" if config.network == "nature" else "Impala's network"
    return (
        f"{config.steps:,} environment steps of 4 frames, {network}, an optimizer step of batch"
        f" {config.batch} for every {config.loop.clock.period} of them after {config.warm_up:,},"
        f" {'ERK' if config.distribution == 'erk' else 'uniform'} sparsity. Pruners change masks from step {start:,} to"
        f" {end:,}, set and rigl from the first optimizer step to the same end. {config.evaluation_episodes} evaluation"
        " games per seed, 0.1 % of their actions random. Sticky actions, rewards clipped to [-1, 1] for learning alone."
    )
