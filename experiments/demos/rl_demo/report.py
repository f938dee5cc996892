"""The outcomes as Markdown tables and as a picture."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.demos.rl_demo.outcomes import DENSE, EPISODES, SOLVED, Frames, Outcome
from experiments.harness.tables import markdown_table

# Dense is black; the other colour is one that colour-blind readers can tell from it (Okabe and Ito, 2008).
COLOURS = {True: "#111111", False: "#D55E00"}
HEADER = ("policy", "seed", "solved at step", "return", "sparsity", "of target network", "kept weights", "seconds")


def table(outcomes: Sequence[Outcome]) -> str:
    """A line per run."""
    return markdown_table(HEADER, [_cells(outcome) for outcome in outcomes])


def _cells(outcome: Outcome) -> tuple[str, ...]:
    last = outcome.curve[-1]
    return (
        outcome.label,
        str(outcome.seed),
        f"{last.step:,}" if outcome.is_solved else f"not in {last.step:,}",
        f"{outcome.final_return:.1f}",
        f"{last.sparsity:.2%}",
        f"{outcome.target_sparsity:.2%}",
        f"{outcome.kept:,} of {outcome.weights:,}",
        f"{outcome.seconds:.0f}",
    )


def pong_table(pong: Frames) -> str:
    """What came of the steps on Pong."""
    header = ("game", "agent steps", "frames", "optimizer steps", "score so far", "sparsity", "steps a second")
    cells = (
        "Pong",
        f"{pong.steps:,}",
        f"{pong.frames:,}",
        str(pong.optimizer_steps),
        f"{pong.score:+.0f}",
        f"{pong.sparsity:.2%}",
        f"{pong.steps / pong.seconds:.0f}",
    )
    return markdown_table(header, [cells])


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many runs of each kind were solved, in a line."""
    parts = []
    for pruner in dict.fromkeys(outcome.pruner for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.pruner == pruner]
        parts.append(f"{sum(run.is_solved for run in runs)} of {len(runs)} {runs[0].label}")
    return f"Solved: {', '.join(parts)}."


def report(outcomes: Sequence[Outcome], pong: Frames) -> str:
    """The text of `results.md`."""
    return f"""# DQN, dense and sparse

{table(outcomes)}

{summary(outcomes)} CartPole-v1 is solved if the greedy policy's mean return is at least {SOLVED:g} over {EPISODES}
episodes of at most 500 steps, and again over {EPISODES} others, which are the return in the table; a sparse policy only
after its last mask change. Sparsity is the fraction of zeros in the weight matrices of the network that acts.

{pong_table(pong)}

The same agent on frames of the game itself, for a few hundred steps: that it runs, not that it has learnt to play.
"""


def figure(outcomes: Sequence[Outcome]) -> Figure:
    """Return by step, and how sparse the first sparse run was by then."""
    drawn = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = drawn.subplots()
    labels = set()
    for outcome in outcomes:
        is_dense = outcome.pruner == DENSE
        name = "dense" if is_dense else f"{outcome.label}, {outcome.curve[-1].sparsity:.0%} sparse at the end"
        steps, means, _ = zip(*outcome.curve, strict=True)
        axes.plot(
            steps, means, color=COLOURS[is_dense], linewidth=1.8, marker="o", markersize=3.5,
            label=None if name in labels else name,
        )  # fmt: skip
        labels.add(name)
    _draw_sparsity(axes, outcomes)
    axes.axhline(SOLVED, color="#888888", linestyle="--", linewidth=1)
    axes.text(0, SOLVED + 6, "solved", color="#666666", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(color="#E8E8E8")
    axes.set_axisbelow(True)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 520)
    axes.set_xlabel("agent steps")
    axes.set_ylabel(f"greedy return, mean of {EPISODES} episodes")
    axes.set_title("DQN on CartPole-v1", fontweight="bold")
    axes.legend(frameon=False, loc="lower right")
    return drawn


def _draw_sparsity(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """Behind the curves, on a scale of its own."""
    sparse = next(outcome for outcome in outcomes if outcome.pruner != DENSE)
    steps, _, sparsities = zip(*sparse.curve, strict=True)
    right = axes.twinx()
    right.fill_between(steps, [100 * sparsity for sparsity in sparsities], color=COLOURS[False], alpha=0.1, linewidth=0)
    right.set_ylim(0, 104)
    right.set_ylabel("sparsity (%, shaded)", color="#666666")
    right.spines[["top", "left"]].set_visible(False)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
