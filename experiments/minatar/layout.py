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
    exchanging = {name.partition(":")[0] for name in settings["algorithms"]} & {"set", "rigl"}
    return agents.layout(
        record,
        "DQN on MinAtar: return and sparsity",
        about(settings),
        changes=mask_changes(settings["steps"]),
        beside=MSPACMAN,
        deviations=[
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


def about(settings: Settings) -> str:
    """What was trained."""
    start, end = mask_changes(settings["steps"])
    names = {"erk": "ERK", "uniform": "uniform"}
    return (
        f"{settings['steps']:,} environment steps, an optimizer step of batch 32 for every 4 of them,"
        f" {names[settings['distribution']]} sparsity, masks change from step {start:,} to {end:,};"
        f" {settings['evaluation_episodes']} evaluation episodes per seed. Games are those of gymnax, with sticky"
        " actions."
    )
