"""What the report says beside tables: how the study differs from the published ones, and their numbers."""

import statistics
from collections.abc import Iterator, Sequence

from experiments.atari.config import STEPS, StudyConfig
from experiments.rl_study.cells import DENSE, label
from experiments.rl_study.outcomes import Outcome
from experiments.tables import markdown_table, percent

# Lee et al., JaxPruner (2023): DQN on MsPacman.
PUBLISHED = {
    DENSE: 2588.8,
    "global_magnitude": 2322.2,
    "magnitude": 2123.8,
    "set": 1723.3,
    "rigl": 1535.2,
    "random": 1435.3,
    "static_sparse": 1156.7,
}
PUBLISHED_SPARSITY = 0.98
WIDE = (
    "Obando-Ceron et al., In value-based deep reinforcement learning, a pruned network is a good network (2024), report"
    " for DQN with Impala, 15 games, 5 seeds and 40M frames: at 95 % sparsity and their largest width about 60 % more"
    " than the dense network of width 1, in the interquartile mean of human-normalized scores; dense networks fall as"
    " they get wider. Here scores are relative to dense training at the smallest width of the study."
)


def about(config: StudyConfig) -> str:
    """What was trained, for the report."""
    start, end = config.mask_changes
    network = "Nature's network" if config.network == "nature" else "Impala's network"
    return (
        f"{config.steps:,} environment steps of 4 frames, {network}, an optimizer step of batch"
        f" {config.batch} for every {config.loop.clock.period} of them after {config.warm_up:,},"
        f" {'ERK' if config.distribution == 'erk' else 'uniform'} sparsity. Pruners change masks from step {start:,} to"
        f" {end:,}, set and rigl from the first optimizer step to the same end. {config.evaluation_episodes} evaluation"
        " games per seed, 0.1 % of their actions random. Sticky actions, rewards clipped to [-1, 1] for learning alone."
    )


def sections(config: StudyConfig, found: Sequence[Outcome]) -> list[str]:
    """The published numbers beside those of this study, and what differs."""
    parts = ["## Beside the published numbers"]
    if config.network == "impala":
        parts.append(WIDE)
    own = [outcome for outcome in found if outcome.cell.game == "MsPacman"]
    if config.network == "nature" and own:
        parts += [
            published_table(own),
            f"Published: Lee et al., JaxPruner (2023), at {percent(PUBLISHED_SPARSITY)} sparsity, each a single number"
            " without spread. Late is the mean return of training episodes in the last tenth of the steps. Relative:"
            " divided by dense.",
        ]
    parts.append("What differs from the published setting:\n\n" + "\n".join(f"- {line}" for line in deviations(config)))
    return parts


def published_table(found: Sequence[Outcome]) -> str:
    """A line per algorithm and sparsity, in the order of the published returns."""
    dense = next((outcome for outcome in found if outcome.cell.algorithm == DENSE), None)
    lines = []
    for outcome in sorted(found, key=lambda outcome: -PUBLISHED.get(outcome.cell.algorithm, 0.0)):
        published = PUBLISHED.get(outcome.cell.algorithm)
        lines.append(
            (
                label(outcome.cell.algorithm),
                percent(outcome.cell.sparsity),
                "" if published is None else f"{published:.1f}",
                "" if published is None else f"{published / PUBLISHED[DENSE]:.3f}",
                *_late(outcome, dense),
                f"{statistics.fmean(outcome.scores):.1f}" if outcome.scores else "failed",
            )
        )
    header = ("algorithm", "sparsity", "published", "relative", "late", "relative", "evaluation")
    return markdown_table(header, lines)


def deviations(config: StudyConfig) -> Iterator[str]:
    """What is not as in the papers, one by one."""
    if config.steps != STEPS:
        shorter = "; masks change in the same part of training" if config.steps < STEPS else ""
        yield f"{config.steps:,} environment steps instead of {STEPS:,}{shorter}."
    if config.envs > 1:
        yield f"{config.envs} copies of the game, in two halves that take turns, are played at once instead of one."
    for name, of_paper, what in (
        ("capacity", 1_000_000, "steps in the replay"),
        ("batch", 32, "transitions in a batch"),
        ("warm_up", 20_000, "environment steps before the first optimizer step"),
        ("epsilon_decay", 250_000, "environment steps in which exploration falls"),
        ("drop_fraction", 0.3, "as the first drop fraction of set and rigl"),
    ):
        if (own := getattr(config, name)) != of_paper:
            yield f"{own:,} {what} instead of {of_paper:,}."
    if config.distribution != "erk":
        yield f"{config.distribution} sparsity over the layers instead of ERK."
    yield "The target network gets new masks when the online network does, not with the next copy."
    yield "ALE's own vector environment reduces the pictures; Dopamine does it with OpenCV."
    if config.network == "impala":
        yield f"{len(config.games)} of 15 games, {len(config.seeds)} instead of 5 seeds, scores not human-normalized."


def _late(outcome: Outcome, dense: Outcome | None) -> tuple[str, str]:
    """Mean return late in training, and relative to dense."""
    late = outcome.late_returns
    if not late:
        return "no episode", ""
    level = statistics.fmean(dense.late_returns) if dense and dense.late_returns else 0.0
    return f"{statistics.fmean(late):.1f}", f"{statistics.fmean(late) / level:.3f}" if level > 0 else ""
