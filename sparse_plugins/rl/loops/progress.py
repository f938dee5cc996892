"""How far a training is, in a line."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparse_plugins.rl.loops.fused_runs import Chunk

__all__ = ["of_chunk", "of_scores", "show"]


def of_scores(scores: Mapping[str, Sequence[float]], which: str = "") -> str:
    """What was scored, by name.

    Args:
        scores: By name, the scores of episodes.
        which: Which episodes these are.

    Example:
        >>> of_scores({"rigl": [1.0, 2.0]}), of_scores({})
        ('rigl: 2 episodes, mean score 1.5', 'no episode has ended')
    """
    said = (f"{name}: {which}{len(own)} episodes, mean score {sum(own) / len(own):.4g}" for name, own in scores.items())
    return "; ".join(said) or "no episode has ended"


def of_chunk(chunk: "Chunk") -> str:
    """A point of the learning curves, averaged over the seeds in which an episode ended."""
    returns = [value for value in chunk.mean_return if not math.isnan(value)]
    scored = f"mean return {sum(returns) / len(returns):.4g}" if returns else "no episode has ended"
    loss = sum(chunk.loss) / len(chunk.loss)
    return f"{chunk.environment_steps:,} environment steps; {scored}, loss {loss:.3g} over {len(chunk.loss)} seeds"


def show(line: str) -> None:
    """Writes a line to standard error."""
    print(line, file=sys.stderr, flush=True)
