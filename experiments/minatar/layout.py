"""How a study of MinAtar's games is read."""

from experiments.common.agents import layout as agents
from experiments.common.agents.settings import mask_changes
from experiments.harness.layout import Layout, Record, Settings, differences
from experiments.harness.tables.published import MSPACMAN

# JaxPruner's study of DQN on MsPacman (Lee et al., 2023).
PAPER = {
    "steps": (10_000_000, "environment steps"),
    "distribution": ("erk", "for the sparsity over the layers"),
    "drop_fraction": (0.1, "as the first drop fraction of set and rigl"),
}
LATE = "set and rigl exchange weights while pruners prune; in JaxPruner's program from the first step on."
PQN = [
    "Games repeat an action with probability 0.1, as MinAtar's do; those of purejaxql never do.",
    "Observations are 0 and 1; purejaxql divides them by 255.",
    "What a time limit cuts off is worth what its last observation is said to be; in purejaxql it is worth nothing.",
    "The learning rate falls to 0 and exploration by a tenth within these steps, in purejaxql within 10 million.",
]
PACE = "set and rigl change masks after every 125th part of training: no paper says how often PQN should."
FIRST = "; set and rigl exchange weights from the first step on"
COMMENTED = (
    "Cells `:published` exchange weights from the first step on, three tenths of them at first, as comments of"
    " JaxPruner's gin file say."
)


def layout(record: Record) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    settings = record["settings"]
    is_late = settings.get("exchange", "late") == "late"  # as in studies of older versions
    is_pqn = settings.get("agent") == "pqn"
    exchanging = exchanges(settings)
    return agents.layout(
        record,
        f"{'PQN' if is_pqn else 'DQN'} on MinAtar: return and sparsity",
        about(settings),
        changes=changes(settings),
        beside=None if is_pqn else MSPACMAN,
        deviations=[*PQN, *([PACE] if exchanging else [])]
        if is_pqn
        else [
            f"MinAtar's {', '.join(settings['games'])} instead of Atari's MsPacman: returns are on another scale, and"
            " only what they are relative to dense training can be set beside the paper's.",
            "MinAtar's network of one convolution instead of Nature's.",
            *differences(settings, PAPER),
            *([LATE] if {"set", "rigl"} & set(settings["algorithms"]) and is_late else []),
            *([COMMENTED] if any(name.endswith(":published") for name in settings["algorithms"]) else []),
            *([agents.UNKNOWN_DROP] if exchanging else []),
            "The target network gets new masks when the online network does, not with the next copy.",
        ],
    )


def changes(settings: Settings) -> tuple[int, int]:
    """Environment steps of the first and the last mask change."""
    return mask_changes(settings["steps"], settings.get("masks_until", 0.8))  # older versions had no other


def exchanges(settings: Settings) -> bool:
    """Whether set or rigl are among the algorithms."""
    return bool({name.partition(":")[0] for name in settings["algorithms"]} & {"set", "rigl"})


def about(settings: Settings) -> str:
    """What was trained."""
    start, end = changes(settings)
    is_first = exchanges(settings) and settings.get("exchange", "late") != "late"
    names = {"erk": "ERK", "uniform": "uniform"}
    paces = {
        "dqn": "an optimizer step of batch 32 for every 4 of them",
        "pqn": "64 optimizer steps of batch 128 for every 4,096 of them",
    }
    return (
        f"{settings['steps']:,} environment steps, {paces[settings.get('agent', 'dqn')]},"
        f" {names[settings['distribution']]} sparsity, masks change from step {start:,} to {end:,}"
        f"{FIRST if is_first else ''};"
        f" {settings['evaluation_episodes']} evaluation episodes per seed. Games are those of gymnax, with sticky"
        " actions."
    )
