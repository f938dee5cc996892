"""How far a training is, in a line."""

import sys
from collections.abc import Mapping, Sequence

__all__ = ["of_scores", "show"]


def of_scores(scores: Mapping[str, Sequence[float]], which: str = "") -> str:
    """What was scored, by name.

    Args:
        scores: By name, the scores of episodes.
        which: Which episodes these are.

    Example:
        >>> of_scores({"rigl": [1.0, 2.0]}), of_scores({})
        ('rigl: 2 episodes, mean score 1.5', 'no episode has ended')
    """
    said = (
        f"{name}: {which}{len(episodes)} episodes, mean score {sum(episodes) / len(episodes):.4g}"
        for name, episodes in scores.items()
    )
    return "; ".join(said) or "no episode has ended"


def show(line: str) -> None:
    """Writes a line to standard error."""
    print(line, file=sys.stderr, flush=True)
