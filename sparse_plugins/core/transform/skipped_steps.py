"""Steps in which weights move, and updaters that would skip every one of them.

`skip_gradients` holds the weights in a step that updates masks. Where masks are updated at every step, or at every step
at which an optimizer that accumulates gradients lets weights move, nothing would ever be trained.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.core.transform.hooks import UpdaterHooks
from sparse_plugins.core.trees import PyTree

__all__ = ["accumulation_periods", "check_some_move"]


def check_some_move(updater: UpdaterHooks, period: int = 1) -> None:
    """Refuses an updater that skips every step in which weights move, as long as its masks are updated.

    Args:
        updater: Any but `PerModule`, which asks for each of its own.
        period: Weights move in every `period`-th step, counted from 1.

    Raises:
        ValueError: If it does. A single change of masks is no reason, nor are steps before the schedule's window.

    Example:
        >>> from sparse_plugins import core
        >>> check_some_move(core.SET(scheduler=core.PeriodicSchedule(2, 0)))
        >>> check_some_move(core.SET(scheduler=core.PeriodicSchedule(1, 0)))
        Traceback (most recent call last):
        ValueError: SET changes masks at every optimizer step ...
    """
    if not updater.skip_gradients or not _skips_all(updater, period):
        return
    unit = updater.scheduler.step_unit
    moves = unit if period == 1 else f"{unit} in which the optimizer that accumulates {period} gradients moves weights"
    inside = "" if period == 1 else f"; with {period} gradients to a step, one that is no divisor of {period}"
    raise ValueError(
        f"{type(updater).__name__} changes masks at every {moves} and skips the gradients of those that do "
        f"(skip_gradients=True), so no weight would be trained meanwhile ({updater.scheduler}): give a larger "
        f"update_freq{inside}, or skip_gradients=False."
    )


def _skips_all(updater: UpdaterHooks, period: int) -> bool:
    steps = updater.scheduler.refresh_steps()
    start = getattr(updater.scheduler, "update_start_step", 0)
    first, last = (int(steps[0]), int(steps[-1])) if steps is not None and len(steps) else (start, start)
    # Steps inside the schedule's window in which weights move, and two beyond it: without an end those are due, too.
    within = range(first + (period - 1 - first) % period, last + 1, period)
    after = (last + 1 + (period - 2 - last) % period + i * period for i in range(2))
    are_due = lambda steps: all(bool(updater.is_refresh_due(step)) for step in steps)  # noqa: E731
    return (len(within) > 1 and are_due(within)) or are_due(after)


def accumulation_periods(inner: optax.GradientTransformationExtraArgs, state: PyTree, params: PyTree) -> set[int]:
    """How many gradients make a step of each `optax.MultiSteps` in an optimizer.

    The state does not say, so the optimizer is called until its counter is at 0 again. Values of parameters are not
    read, and the compiler leaves nothing of an update but the counters.

    Args:
        inner: The optimizer.
        state: What its init gave.
        params: Parameter tree; shapes are read only.

    Returns:
        The periods; none of a part that takes another number next time, or of an optimizer that needs more than
        gradients.

    Example:
        >>> params, tx = {"w": jnp.ones(3)}, optax.MultiSteps(optax.adam(0.1), 4).gradient_transformation()
        >>> accumulation_periods(optax.with_extra_args_support(tx), tx.init(params), params)
        {4}
    """
    if not any(map(_accumulates, jax.tree.leaves(state, is_leaf=_accumulates))):
        return set()
    shapes = jax.eval_shape(lambda *trees: trees, state, params)

    @jax.jit
    def after(counts: list[tuple]) -> list[tuple]:
        before, blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        given = iter(counts)
        counted = lambda node: node._replace(**dict(zip(_COUNTERS, next(given), strict=True)))  # noqa: E731
        before = jax.tree.map(lambda x: counted(x) if _accumulates(x) else x, before, is_leaf=_accumulates)
        return _counters(inner.update(blank, before, blank)[1])

    with contextlib.suppress(TypeError, ValueError), jax.ensure_compile_time_eval():
        counts, moved = [(jnp.int32(0),) * 2 for _ in _counters(shapes[0])], []
        for _ in range(2 * _LONGEST):
            counts = after(counts)
            moved.append([int(gradient_step) for _, gradient_step in counts])
            if min(moved[-1]) == 2:  # every part has moved weights twice
                ends = [(column.index(1) + 1, column.index(2) + 1) for column in zip(*moved, strict=True)]
                return {once for once, twice in ends if twice == 2 * once}
    return set()


_COUNTERS = ("mini_step", "gradient_step")
_LONGEST = 1000


def _accumulates(node: Any) -> bool:
    return isinstance(node, optax.MultiStepsState)


def _counters(state: PyTree) -> list[tuple]:
    found = filter(_accumulates, jax.tree.leaves(state, is_leaf=_accumulates))
    return [tuple(getattr(node, name) for name in _COUNTERS) for node in found]
