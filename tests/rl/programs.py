"""One compiled step for all agents that are configured alike.

Dopamine's steps take the optimizer as a static argument, and an optimizer equals only itself: each agent compiles its
own, which is most of the time that tests of agents take. Here, equal calls give one object.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optax
import pytest

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.rl.clock import Clock
from sparse_plugins.rl.dopamine import bindings

_FACTORIES = ("adam", "adamw", "add_decayed_weights", "chain", "clip_by_global_norm", "linear_schedule", "sgd")


def _made_once_by_description(make: Callable[..., BaseUpdater]) -> Callable[..., BaseUpdater]:
    """The first of all updaters with the same fields and layers; it stays alive, so no address comes twice."""
    made: dict[str, BaseUpdater] = {}

    def first_made(*given: Any) -> BaseUpdater:
        updater = make(*given)
        updater.pre_forward_update = updater.pre_forward_update  # one method, too, for what is compiled of it
        return made.setdefault(repr((type(updater), vars(updater))), updater)

    return first_made


_PLACES = [
    *((optax, name) for name in _FACTORIES),
    (bindings, "without_noise_scales"),
    (BaseUpdater, "wrap_optax"),
    (Clock, "in_optimizer_steps"),
]
_ORIGINAL = {place: getattr(*place) for place in _PLACES}
_SHARED = {place: functools.cache(make) for place, make in _ORIGINAL.items()}
_SHARED[Clock, "in_optimizer_steps"] = _made_once_by_description(Clock.in_optimizer_steps)


@contextlib.contextmanager
def _in_place(makers: Mapping[tuple[Any, str], Callable[..., Any]]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patches:
        for (owner, name), make in makers.items():
            patches.setattr(owner, name, make)
        yield


@pytest.fixture(scope="module", autouse=True)
def shared_programs() -> Iterator[None]:
    with _in_place(_SHARED):
        yield


@pytest.fixture
def unshared_programs(shared_programs: None) -> Iterator[None]:
    """For tests of what is compiled: their agents share nothing."""
    with _in_place(_ORIGINAL):
        yield
