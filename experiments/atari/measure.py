"""How long each part of a step takes on this machine, before hours are spent: nothing is learnt here that is kept."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.atari.config import AtariSettings
from experiments.atari.train import environments, groups, num_actions
from experiments.harness.cells import Cell
from experiments.harness.tables import markdown_table
from sparse_plugins.rl.environments.interfaces import VectorEnvironment, VectorStep
from sparse_plugins.rl.loops.vector import VectorTrainer


class Part(NamedTuple):
    """A part of an iteration.

    Attributes:
        name: Name of the part, for readers.
        seconds: Seconds that it takes, alone.
        of: What it does for all runs in an iteration, as a number and its unit.
    """

    name: str
    seconds: float
    of: tuple[int, str]


def measure(config: AtariSettings, batch: Sequence[Cell]) -> list[Part]:
    """Times the parts of an iteration of a batch, and the whole last.

    Acting is measured on a picture that stands still, during a warm-up that does not end; learning is what the same
    takes more after it. In training, emulators work while the device does.

    Args:
        config: Settings of the study; `measure` is the seconds for each part.
        batch: Cells of one game.
    """
    loop, runs = config.loop, len(batch) * len(config.seeds)
    steps, updates = runs * loop.num_envs * loop.vector_steps, runs * loop.updates
    made = environments(config, batch[0].group)
    still = lambda seed, first, size: _Still(made(seed, first, size))  # noqa: E731
    emulate = _time_emulators(config, batch, made)
    copy = _time_copies(config, batch)
    act = _time_training(config, batch, still, learns=False)
    both = _time_training(config, batch, still, learns=True)
    whole = _time_training(config, batch, made, learns=True)
    return [
        Part("environment", emulate, (steps, "steps")),
        Part("copy to the device", copy, (steps, "frames")),
        Part("act and store, copy included", act, (steps, "steps")),
        Part("learn", max(both - act, 0.0), (updates, "updates")),
        Part("all of it", whole, (steps, "steps")),
    ]


def table(config: AtariSettings, batches: Sequence[Sequence[Cell]], parts: Sequence[Part]) -> str:
    """The parts, and how long the study will take.

    Args:
        config: Settings of the study.
        batches: All of them.
        parts: Parts of an iteration of the first.
    """
    lines = [
        (part.name, f"{1e3 * part.seconds:.3f}", f"{part.of[0] / max(part.seconds, 1e-9):,.0f} {part.of[1]}")
        for part in parts
    ]
    runs = len(batches[0]) * len(config.seeds)
    iterations = math.ceil(config.steps / (config.loop.num_envs * config.loop.vector_steps))
    first = iterations * parts[-1].seconds / 60
    every = first * sum(map(len, batches)) / len(batches[0])
    return (
        f"An iteration of {runs} runs: {parts[-1].of[0]} environment steps on {jax.devices()[0].device_kind}\n\n"
        f"{markdown_table(('part', 'ms', 'per second'), lines)}\n\n"
        f"About {first:,.1f} minutes for the first batch of {len(batches[0])} cells, {every:,.1f} for all"
        f" {sum(map(len, batches))} cells; compiling, checkpoints and evaluation come on top."
    )


class _Still:
    """An environment that always shows the same."""

    resumes_exactly = True

    def __init__(self, environment: VectorEnvironment) -> None:
        size = environment.num_envs
        for name in ("name", "num_envs", "num_actions", "frame_shape", "frame_dtype"):
            setattr(self, name, getattr(environment, name))
        frames = np.random.default_rng(0).integers(0, 256, (size, *environment.frame_shape), np.uint8)
        no = np.zeros(size, bool)
        self._step = VectorStep(frames, np.zeros(size, np.float32), no, no, no)
        environment.close()

    def reset(self) -> VectorStep:
        return self._step

    def send(self, actions: np.ndarray) -> None:
        """Nobody plays."""

    def recv(self) -> VectorStep:
        return self._step

    def save(self) -> dict[str, np.ndarray]:
        """There is nothing to remember."""
        return {}

    def restore(self, saved: dict[str, np.ndarray]) -> VectorStep:
        return self._step

    def close(self) -> None:
        """There is nothing to close."""


def _time_emulators(config: AtariSettings, batch: Sequence[Cell], made: Callable[[int, int, int], Any]) -> float:
    loop, runs, random = config.loop, len(batch) * len(config.seeds), np.random.default_rng(0)
    size = loop.num_envs // loop.num_halves
    halves = [[made(run, half * size, size) for run in range(runs)] for half in range(loop.num_halves)]
    actions = random.integers(0, num_actions(batch[0].group), (64, size))
    turns = 0

    def iterate() -> None:
        nonlocal turns
        for _ in range(loop.vector_steps):
            for half in halves:
                for environment in half:
                    environment.send(actions[turns % 64])
                turns += 1
            for half in halves:
                for environment in half:
                    environment.recv()

    everyone = [environment for half in halves for environment in half]
    for environment in everyone:
        environment.reset()
    try:
        return _seconds(iterate, config.measure)
    finally:
        for environment in everyone:
            environment.close()


def _time_copies(config: AtariSettings, batch: Sequence[Cell]) -> float:
    loop = config.loop
    frames = np.zeros((len(config.seeds), loop.num_envs // loop.num_halves, 84, 84), np.uint8)

    def iterate() -> None:
        for _ in range(loop.turns):
            jax.block_until_ready([jax.device_put(frames) for _ in batch])

    return _seconds(iterate, config.measure)


def _time_training(
    config: AtariSettings, batch: Sequence[Cell], made: Callable[[int, int, int], Any], learns: bool
) -> float:
    size = config.loop.num_envs
    warm_up = size * (2 if learns else 1 << 24)
    trainer = VectorTrainer(made, groups(config, batch), dataclasses.replace(config.loop, warm_up=warm_up))

    def iterate() -> None:
        trainer.advance(4)
        jax.block_until_ready(trainer.states)

    try:
        return _seconds(iterate, config.measure) / 4
    finally:
        trainer.close()


def _seconds(function: Callable[[], None], at_least: float) -> float:
    """Mean time of a call, after one that compiles."""
    function()
    calls, began = 0, time.perf_counter()
    while not calls or time.perf_counter() - began < at_least:
        function()
        calls += 1
    return (time.perf_counter() - began) / calls
