"""How the demonstration is read; known without Dopamine, which takes seconds and a gigabyte to load."""

from experiments.harness.cells import DENSE, Cell
from experiments.harness.layout import Curve, Layout, Measure, Record, last

SOLVED = 475.0  # gymnasium's own threshold of CartPole-v1
EPISODES = 100
ABOUT = (
    f"CartPole-v1 is solved if the greedy policy's mean return is at least {SOLVED:g} over {EPISODES} episodes of at"
    f" most 500 steps, and again over {EPISODES} others, which are the return in the table; a sparse policy only after"
    " its last mask change. The same agent then sees frames of Pong for a few hundred steps: that it runs, not that it"
    " has learnt to play."
)


def layout(record: Record) -> Layout:
    """The layout of the demonstration.

    Args:
        record: What its `config.json` holds.
    """
    settings = record["settings"]
    return Layout(
        title="DQN, dense and sparse",
        about=ABOUT,
        cell={"pruner": "name"},
        numbers={
            "mean_return": float,
            "online_sparsity": float,
            "final_return": float,
            "target_sparsity": float,
            "kept": int,
        },
        cells=(Cell("", DENSE), Cell("", settings["pruner"])),
        seeds=tuple(settings["seeds"]),
        step="step",
        step_label="agent step",
        is_last=lambda row: row.final_return is not None,
        scores=(
            Measure("return", last("final_return"), digits=1),
            Measure("solved at step", last("step"), digits=0),
            Measure("zeros of target network, %", last("target_sparsity"), 100),
            Measure("kept weights", last("kept"), digits=0),
        ),
        sparsity=Measure("zeros", last("online_sparsity"), digits=4),
        curve=Curve(f"greedy return, mean of {EPISODES} episodes", "mean_return"),
        notes="Zeros is the fraction of zeros in the weight matrices of the network that acts.",
    )
