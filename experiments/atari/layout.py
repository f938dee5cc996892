"""How a study of Atari games is read."""

from experiments.common.agents import layout as agents
from experiments.harness.layout import Layout, Record, Settings, differences
from experiments.harness.tables.published import MSPACMAN, WIDE

STEPS = 10_000_000  # of the papers: 40 iterations of 1M frames
PAPER = {
    "steps": (STEPS, "environment steps"),
    "capacity": (1_000_000, "steps in the replay"),
    "batch": (32, "transitions in a batch"),
    "warm_up": (20_000, "environment steps before the first optimizer step"),
    "epsilon_decay": (250_000, "environment steps in which exploration falls"),
    "drop_fraction": (0.1, "as the first drop fraction of set and rigl"),
    "distribution": ("erk", "for the sparsity over the layers"),
}


def layout(record: Record) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    settings = record["settings"]
    is_published = settings["network"] == "nature" and list(settings["games"]) == ["MsPacman"]
    return agents.layout(
        record,
        "DQN on Atari: return and sparsity",
        record["about"],
        changes=tuple(record["changes"]),
        published=MSPACMAN if is_published else None,
        beside=MSPACMAN if is_published else None,
        deviations=deviations(settings),
        further=[WIDE] if settings["network"] == "impala" else [],
    )


def deviations(settings: Settings) -> list[str]:
    """What is not as in the papers, one by one."""
    found = differences(settings, PAPER)
    if settings["steps"] < STEPS:
        found.append("Masks change in the same part of the shorter training.")
    if {"set", "rigl"} & set(settings["algorithms"]):
        found.append(agents.UNKNOWN_DROP)
    if settings["envs"] > 1:
        found.append(
            f"{settings['envs']} copies of the game, in two halves that take turns, are played at once instead of one."
        )
    found += [
        "The target network gets new masks when the online network does, not with the next copy.",
        "ALE's own vector environment reduces the pictures; Dopamine does it with OpenCV.",
    ]
    if settings["network"] == "impala":
        found.append(
            f"{len(settings['games'])} of 15 games, {len(settings['seeds'])} instead of 5 seeds, scores not"
            " human-normalized."
        )
    return found
