"""The demonstration as a task: settings, runs, and what trains them in a process of its own."""

import dataclasses
import functools
from collections.abc import Sequence

from experiments.harness.cells import DENSE, Cell
from experiments.harness.recorder import Recorder
from experiments.harness.settings import SEEDS, Settings, flag
from experiments.harness.study import Plan
from sparse_plugins import core


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """What is demonstrated; checked when built.

    Raises:
        ValueError: as `Settings`.
    """

    seeds: tuple[int, ...] = flag(SEEDS, int, nargs="+", default=(1,))
    pruner: str = flag(
        "algorithm of the sparse policy",
        choices=tuple(name for name in core.all_algorithm_names() if name != DENSE),
        default="magnitude",
    )
    max_steps: int = flag("agent steps after which a run gives up", int, default=60_000)
    pong_steps: int = flag("agent steps on Pong, after the first sparse run", int, default=400)
    gin_bindings: tuple[str, ...] = flag(
        "further binding of cartpole_dqn.gin; may be repeated", action="append", default=(), shown="none"
    )
    jobs: int = flag("runs side by side, each in a process of its own", int, default=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "max_steps", "jobs")
        self.at_least(80, "pong_steps")


def plan(settings: DemoSettings) -> Plan:
    """Every run alone; only these load Dopamine, with TensorFlow."""
    cells = [Cell("", DENSE), Cell("", settings.pruner)]
    text = f"{len(settings.seeds)} dense and as many sparse runs of up to {settings.max_steps:,} steps."
    return Plan(settings, cells, functools.partial(train, settings), text, jobs=settings.jobs)


def train(settings: DemoSettings, batch: Sequence[Recorder]) -> bool:
    """Solves CartPole; a sparse policy leaves a picture of an episode, the first one of them also plays Pong."""
    from experiments.demos.rl_demo import cartpole, pong, render

    (recorder,) = batch
    (cell, seed), is_sparse = recorder.run, not recorder.run.cell.is_dense
    recorder.restart()
    agent, environment = cartpole.cartpole_agent(cell.name, seed, settings.gin_bindings)
    try:
        for step, numbers in cartpole.solve(agent, environment, settings.max_steps):
            recorder.add(step, **numbers)
    finally:
        if is_sparse:
            render.render(agent, recorder.folder / "policy.gif")
        if is_sparse and seed == settings.seeds[0]:
            for item, value in pong.play(settings.pong_steps, seed).items():
                recorder.measure(item, "Pong, the first steps", value)
    return True
