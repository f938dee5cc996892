"""A schedule held against the length of a run: does it update masks at all, and does it end?"""

import warnings
from collections.abc import Iterator

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.schedules import NoUpdateSchedule, whole_number

__all__ = ["check_length", "concerns_of_length", "first_update", "never_changes"]


def check_length(updater: BaseUpdater, steps: int, word: str = "total_steps") -> None:
    """Refuses an updater whose masks never change in a run; warns if its schedule does not end in it.

    Args:
        updater: The updater.
        steps: Length of the run in steps of the schedule.
        word: How the caller calls the length.

    Raises:
        ValueError: If the masks of the updater, or of a part of it, are to change and never do.

    Example:
        >>> from sparse_plugins import core
        >>> check_length(core.MagnitudePruning(scheduler=core.OneShotSchedule(50)), 50)
        Traceback (most recent call last):
        ValueError: MagnitudePruning changes no mask in a run of 50 optimizer steps: ...
    """
    for concern, is_idle in _concerns(updater, whole_number(word, steps, 1)):
        if is_idle:
            raise ValueError(f"{concern}. Start its schedule earlier, or give {word}= the length that the run has.")
        warnings.warn(
            f"{concern}. End its schedule earlier, or give {word}= the length that the run has.", stacklevel=3
        )


def concerns_of_length(updater: BaseUpdater, steps: int) -> list[str]:
    """What the schedules of an updater will not do in a run of `steps` steps.

    Example:
        >>> from sparse_plugins import core
        >>> concerns_of_length(core.MagnitudePruning(scheduler=core.OneShotSchedule(250, step_unit="round")), 50)
        ['MagnitudePruning changes no mask in a run of 50 rounds: masks change once, at round 250']
    """
    return [concern for concern, _ in _concerns(updater, steps)]


def never_changes(updater: BaseUpdater, steps: int) -> str:
    """What is wrong if masks that are to change never do in a run of `steps` steps; nothing if they do.

    Example:
        >>> from sparse_plugins import core
        >>> never_changes(core.MagnitudePruning(scheduler=core.OneShotSchedule(49)), 50)
        ''
    """
    return next((concern for concern, is_idle in _concerns(updater, steps) if is_idle), "")


def first_update(updater: BaseUpdater) -> int:
    """The step that first updates masks, of all parts of an updater; 0 where there are masks from the start.

    Example:
        >>> from sparse_plugins import core
        >>> first_update(core.MagnitudePruning(scheduler=core.OneShotSchedule(49)))
        49
    """
    parts = [part for _, part in updater.parts] or [updater]
    return max((_first_and_last(part)[0] or 0) for part in parts)


def _concerns(updater: BaseUpdater, steps: int) -> Iterator[tuple[str, bool]]:
    """Each concern, and whether it is that no mask ever changes."""
    for part in [part for _, part in updater.parts] or [updater]:
        first, last = _first_and_last(part)
        schedule, name = part.describe_schedule(), type(part).__name__
        length = f"a run of {steps} {part.scheduler.step_unit}s"
        if first is not None and first >= steps:
            yield f"{name} changes no mask in {length}: {schedule}", True
        elif last is not None and last >= steps and _grows_sparser(part):
            reached = part.scheduler.get_sparsity_at_step(1.0, steps - 1)
            yield f"{name} reaches {reached:.0%} of its target sparsity in {length}: {schedule}", False
        elif last is not None and last > steps and not part.keeps_dense_weights:  # those follow their weights anyway
            yield f"{name} still changes masks at the end of {length}: {schedule}", False


def _first_and_last(updater: BaseUpdater) -> tuple[int | None, int | None]:
    """First and last step at which masks are updated; None where there is none or nobody knows."""
    if not updater.prunes or updater.masks_from_seed:
        return None, None
    steps = updater.scheduler.refresh_steps()
    if steps is None:
        return updater.scheduler.update_start_step, None  # type: ignore[attr-defined]
    return (int(steps[0]), int(steps[-1])) if len(steps) else (None, None)


def _grows_sparser(updater: BaseUpdater) -> bool:
    """Whether the sparsity follows the schedule, instead of being the target from the start."""
    return type(updater.scheduler).get_sparsity_at_step is not NoUpdateSchedule.get_sparsity_at_step
