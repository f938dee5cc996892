"""A target network beside an agent of the host follows every change of masks, and asks the device at no other step."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins import core
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.rl import TargetPolicy
from sparse_plugins.rl.target_network import HostFollower
from tests.rl_haiku.test_haiku_foreign import SHAPES, networks, pruned_weights_in_use
from tests.rl_haiku.toy_learner import RAMP, updater_of

SCHEDULE = core.PolynomialSchedule(update_start_step=7, update_end_step=60, update_freq=5)
UPDATER = core.MagnitudePruning(scheduler=SCHEDULE)


class Count:
    """A schedule count that notes who asks for it."""

    def __init__(self, steps: int) -> None:
        self.steps, self.asked = steps, 0

    def __int__(self) -> int:
        self.asked += 1
        return self.steps


def taken_over(follower: HostFollower, steps: int) -> tuple[bool, int]:
    """Whether the target follows once a state of so many steps is taken over, and how often its count was asked for."""
    follower.onto_masks = lambda target, opt_state: "on masks"
    count = Count(steps)
    return follower.after_step("as it was", SparseState(masks=(), count=count)) == "on masks", count.asked


@pytest.mark.parametrize("each", [1, 3, 8])
def test_the_device_is_asked_at_first_and_where_masks_change(each: int) -> None:
    follower = HostFollower(UPDATER, "at_mask_update")
    found = [taken_over(follower, steps) for steps in range(each, 100, each)]
    changed = [any(map(UPDATER.is_refresh_due, range(steps - each, steps))) for steps in range(each, 100, each)]
    assert [follows for follows, _ in found] == changed
    assert [asked for _, asked in found[1:]] == [int(change) for change in changed[1:]]
    assert found[0][1] == 1
    assert sum(changed) >= 6


@given(each=st.integers(1, 4), steps_made=st.lists(st.booleans(), max_size=120), restored=st.integers(0, 50))
@settings(max_examples=50)
def test_no_change_is_missed_by_states_without_a_step_nor_after_a_checkpoint(each, steps_made, restored) -> None:
    follower = HostFollower(UPDATER, TargetPolicy.AT_MASK_UPDATE)
    with follower.restoring():
        assert taken_over(follower, restored) == (False, 1), "it is left as it is written"
    counts = [restored, *(restored + each * made for made in itertools.accumulate(steps_made))]
    for before, after in itertools.pairwise(counts):
        assert taken_over(follower, after)[0] == any(map(UPDATER.is_refresh_due, range(before, after)))


def test_a_state_from_far_ahead_is_noticed_where_masks_would_have_changed_and_teaches_nothing() -> None:
    """Put there past the agent's own way to restore, which says so."""
    follower = HostFollower(UPDATER, "at_mask_update")
    found = [taken_over(follower, steps) for steps in (1, 2, *range(30, 60))]
    noticed = found.index((True, 1))
    assert noticed < 8
    due = [bool(UPDATER.is_refresh_due(step)) for step in range(30, 59)][noticed - 2 :]
    assert found[noticed + 2 :] == [(change, int(change)) for change in due[1:]]


@pytest.mark.parametrize("policy", ["at_sync", "after_polyak", "dense"])
def test_other_policies_never_ask(policy: str) -> None:
    follower = HostFollower(UPDATER, policy)
    assert [taken_over(follower, steps) for steps in range(1, 30)] == [(False, 0)] * 29


def noting(calls: list[str], method: Any) -> Any:
    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(method.__name__)
        return method(*arguments, **options)

    return noted


@pytest.mark.parametrize("shape", SHAPES)
def test_an_ordinary_step_of_an_agent_brings_nothing_to_the_host(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfer guards say it where device and host have memories of their own, the methods counted here everywhere."""
    build, step = SHAPES[shape]
    updater = updater_of("rigl", update_end_step=17)
    agent, array, asked = build(updater), type(jnp.int32(0)), []
    for name in ("__int__", "__float__", "__bool__", "__index__", "__array__", "item", "tolist", "block_until_ready"):
        monkeypatch.setattr(array, name, noting(asked, getattr(array, name)))
    found = []
    for i in range(20):
        del asked[:]
        is_ordinary = i > 0 and not updater.is_refresh_due(i)
        with jax.transfer_guard_device_to_host("disallow" if is_ordinary else "allow"):
            step(agent, i)
        found.append(bool(asked))
    expected = [i == 0 or bool(updater.is_refresh_due(i)) for i in range(20)]
    if shape == "zoo":  # it looks once whether the first masks hold, when parameters and state are of one step again
        expected[RAMP["update_start_step"] + 1] = True
    assert found == expected
    assert 2 <= sum(found) <= 6
    assert pruned_weights_in_use(agent) == [0, 0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(networks(agent)))
