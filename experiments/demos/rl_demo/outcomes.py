"""What the runs of the demonstration hand back; known without Dopamine, which takes seconds and a gigabyte to load."""

from typing import Any, NamedTuple

DENSE = "no_prune"
SOLVED = 475.0  # gymnasium's own threshold of CartPole-v1
EPISODES = 100


class Point(NamedTuple):
    """One evaluation.

    Attributes:
        step: Agent steps so far.
        mean_return: Mean return of the greedy policy.
        sparsity: Fraction of zeros in the layers that can be pruned.
    """

    step: int
    mean_return: float
    sparsity: float


class Outcome(NamedTuple):
    """How a run on CartPole ended.

    Attributes:
        pruner: Its algorithm; `DENSE` for none.
        seed: Of agent and environment.
        curve: Its evaluations.
        is_solved: Whether other episodes confirmed the last evaluation, at the final sparsity.
        final_return: Mean return of those episodes, or of the last evaluation if there were none.
        target_sparsity: Fraction of zeros in the target network.
        kept: Weights that are not zero in the layers that can be pruned.
        weights: Weights of these layers.
        seconds: Wall time.
        params: Parameters of the policy, NumPy arrays.
    """

    pruner: str
    seed: int
    curve: list[Point]
    is_solved: bool
    final_return: float
    target_sparsity: float
    kept: int
    weights: int
    seconds: float
    params: Any

    @property
    def label(self) -> str:
        """Its name for readers."""
        return "dense" if self.pruner == DENSE else self.pruner


class Frames(NamedTuple):
    """What came of the first steps on Pong.

    Attributes:
        steps: Of the agent.
        frames: Of the game.
        optimizer_steps: Of which the agent learnt.
        score: Points won less points lost.
        sparsity: Fraction of zeros in the layers that can be pruned, at the end.
        seconds: Wall time of the steps, compilation included.
    """

    steps: int
    frames: int
    optimizer_steps: int
    score: float
    sparsity: float
    seconds: float
