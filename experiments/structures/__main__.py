"""`python -m experiments.structures {federated,rl}`: structures in federated learning and in reinforcement learning."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.common.agents.cartpole import CONFIG, STEPS, pruned, trainer
from experiments.common.agents.cartpole import DENSE as NOT_PRUNED
from experiments.common.supervised.train import measured_sparsity
from experiments.fed_emnist.config import FederatedSettings
from experiments.fed_emnist.variants import described, federated, record_training
from experiments.harness.command import main
from experiments.harness.layers import masks_of
from experiments.harness.recorder import Recorder
from experiments.harness.settings import flag
from experiments.harness.study import Plan, Question, Variants
from experiments.harness.variants import VariantSettings, plan_of
from experiments.registry import STUDIES
from sparse_plugins import core
from sparse_plugins.core.structure_names import parse_structure
from sparse_plugins.fed import datasets


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructureSettings(VariantSettings):
    """What is trained with every structure; checked when built.

    Raises:
        ValueError: as `VariantSettings`.
    """

    sparsity: float = flag("target fraction of zeros in all layers but the last, 0 to 1", float, default=0.5)
    dataset: str = flag("handwriting to train on, of the federated study", choices=datasets.NAMES, default="strokes")
    rounds: int = flag("rounds of each run of the federated study", int, default=100)
    steps: int = flag("environment steps of each seed of the rl study", int, default=48_000)
    episodes: int = flag("episodes that each seed of the rl study plays greedily after training", int, default=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "rounds", "episodes")
        self.at_least(2 * CONFIG.warm_up, "steps")


def of_rounds(settings: StructureSettings, cells: Variants) -> Plan:
    """The federated study with structures and a last layer that stays dense."""

    def config_of(name: str) -> FederatedSettings:
        given: dict[str, Any] = {
            "dataset": settings.dataset,
            "distribution": "uniform",
            "dense_output": True,
            "structure": cells[name].get("sparsity_type", "unstructured"),
            "rounds": settings.rounds,
            "evaluate_every": max(settings.rounds // 10, 1),
            "update_every": max(settings.rounds // 40, 1),
        }
        return federated(settings, cells[name]["algorithm"], given)

    config = config_of([*cells][-1])
    about = (
        f"Federated averaging with sparse messages on {settings.dataset}, a network of 784-200-200 units,"
        f" {settings.rounds} rounds of {config.clients_per_round} clients; masks change from round"
        f" {config.update_start} to {config.update_end}."
    )
    prepare = lambda name: functools.partial(record_training, config_of(name))  # noqa: E731
    return plan_of(settings, cells, about, prepare, described(config))


def of_steps(settings: StructureSettings, cells: Variants) -> Plan:
    """The fused CartPole agents with structures and a last layer that stays dense, all seeds of a cell at once."""

    def updater(name: str) -> core.BaseUpdater:
        """Its steps are environment steps, in the proportions of the fused demonstration."""
        if cells[name]["algorithm"] == "no_prune":
            return NOT_PRUNED
        start, every = max(settings.steps // 16, CONFIG.warm_up), max(settings.steps // 96, 1)
        made = pruned(every, start, max(5 * settings.steps // 12, start + every))
        budget = functools.partial(core.uniform, sparsity=settings.sparsity, rules=[("values/w", None)])
        structure = parse_structure(cells[name]["sparsity_type"])
        return dataclasses.replace(made, sparsity_distribution_fn=budget, sparsity_type=structure)

    def prepare(name: str) -> Callable[[Recorder], None]:
        trained = trainer(updater(name))
        keys = jax.vmap(jax.random.key)(np.asarray(settings.seeds, np.uint32))
        state, _ = trained.run(trained.init(keys), CONFIG.iterations(settings.steps))
        returns = trained.evaluate(state, settings.episodes, jax.random.key(1)).mean(axis=1)

        def run(recorder: Recorder) -> None:
            place = settings.seeds.index(recorder.run.seed)
            learner: Any = jax.tree.map(lambda leaf: leaf[place], state.learner)
            sparsity = measured_sparsity(learner.params, learner.optimizer_state)
            masks = masks_of(learner.params, learner.optimizer_state)
            recorder.add(settings.steps, masks, score=float(returns[place]), sparsity=sparsity, is_last=1)

        return run

    last = updater([*cells][-1])
    trainer(last)  # what is missing or does not fit is known before the study begins
    about = (
        f"DQN on CartPole, two layers of 64 units, {settings.steps:,} environment steps a seed (the learning rate"
        f" falls within {STEPS:,}), all seeds at once; {last.describe_schedule()}; returns of {settings.episodes}"
        " greedy episodes."
    )
    return plan_of(settings, cells, about, prepare)


def task(settings: StructureSettings, question: Question) -> Plan:
    """The plan of either study."""
    cells = settings.chosen(question.variants(settings))
    return (of_rounds if question is STUDIES["structures"].questions["federated"] else of_steps)(settings, cells)


run = functools.partial(main, STUDIES["structures"], StructureSettings, task)

if __name__ == "__main__":
    sys.exit(run())
