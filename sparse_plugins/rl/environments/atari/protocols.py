"""How Atari games are played: the protocols that published results follow."""

import dataclasses
from typing import Any

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.selection.counts import check_fraction

__all__ = ["AtariProtocol", "atari_100k", "machado"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariProtocol:
    """How a game is played; the defaults are those of Machado et al.

    Attributes:
        sticky_actions: Probability, at each frame, that the action of the frame before is repeated.
        frame_skip: Frames per environment step.
        max_pool: Show the brighter of the last two frames at each pixel; some games draw sprites at every other one.
        noop_starts: Episodes begin with a random number below this of frames without action; 0 or 1 for none.
        fire_start: Press fire to begin, in games that have the button.
        episodic_life: A life lost ends the episode for the agent, while the game goes on: the step that opens the next
            episode plays no action. Frames of the environment step in which it was lost are still played to the end.
        full_action_set: All 18 actions instead of those that matter in the game.
        max_frames: Frames after which an episode is truncated; the count goes on where a life is lost.
        frame_shape: Height and width to which the screen is reduced, in pixels.

    Raises:
        ValueError: If a field has a value that is not allowed.

    Example:
        >>> AtariProtocol(full_action_set=True).frame_skip
        4

    Source: Machado et al., Revisiting the Arcade Learning Environment (2018).
    """

    sticky_actions: float = 0.25
    frame_skip: int = 4
    max_pool: bool = True
    noop_starts: int = 0
    fire_start: bool = False
    episodic_life: bool = False
    full_action_set: bool = False
    max_frames: int = 108_000
    frame_shape: tuple[int, int] = (84, 84)

    def __post_init__(self) -> None:
        check_fraction("sticky_actions", self.sticky_actions)
        for name, lowest in (("frame_skip", 1), ("noop_starts", 0), ("max_frames", 1)):
            whole_number(name, getattr(self, name), lowest)
        if len(self.frame_shape) != 2:
            raise ValueError(f"frame_shape is {self.frame_shape!r}; give height and width, e.g. (84, 84).")
        for size in self.frame_shape:
            whole_number("a side of frame_shape", size, 1)


def machado(**changes: Any) -> AtariProtocol:
    """The protocol of Machado et al., which Dopamine and the paper's Atari table follow.

    Args:
        **changes: Fields of `AtariProtocol` that differ from it.

    Example:
        >>> machado(full_action_set=True).sticky_actions
        0.25

    Source: Machado et al., Revisiting the Arcade Learning Environment (2018).
    """
    return AtariProtocol(**changes)


def atari_100k(*, training: bool = True, **changes: Any) -> AtariProtocol:
    """The protocol of the Atari 100k benchmark, of which 100,000 environment steps (400,000 frames) are one run.

    Args:
        training: End episodes where a life is lost; whole games count when an agent is evaluated.
        **changes: Fields of `AtariProtocol` that differ from it.

    Returns:
        No sticky actions, up to 29 frames without action at the start of a game.

    Example:
        >>> atari_100k().episodic_life, atari_100k(training=False).episodic_life
        (True, False)

    Source: Kaiser et al., Model-Based Reinforcement Learning for Atari (2020);
    van Hasselt et al., When to Use Parametric Models in Reinforcement Learning? (2019).
    """
    return AtariProtocol(**{"sticky_actions": 0.0, "noop_starts": 30, "episodic_life": training, **changes})
