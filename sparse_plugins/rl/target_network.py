"""How a target network follows the online one: its copies, averages and masks, for every agent of `rl`."""

import contextlib
import dataclasses
import enum
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.transform.cond import fresh_if
from sparse_plugins.core.transform.state import find_sparse_state
from sparse_plugins.core.trees import PyTree

__all__ = ["HostFollower", "TargetFollower", "TargetPolicy", "is_replicated"]


class TargetPolicy(enum.StrEnum):
    """When the target network gets the masks of the online network.

    Attributes:
        AT_MASK_UPDATE: The moment masks are updated: the target is never denser than the online network.
        AT_SYNC: Sparse from step 0, then whenever the agent copies the online network. Under Polyak averaging a weight
            that is pruned later only fades away.
        AFTER_POLYAK: Whenever the agent writes the target network, so that an average of old and new masks does not
            leave small weights behind.
        DENSE: Never by us: the target is what the agent makes of dense initial weights.

    Example:
        >>> TargetPolicy.of("at_sync")
        <TargetPolicy.AT_SYNC: 'at_sync'>
    """

    AT_MASK_UPDATE = "at_mask_update"
    AT_SYNC = "at_sync"
    AFTER_POLYAK = "after_polyak"
    DENSE = "dense"

    @classmethod
    def of(cls, name: "str | TargetPolicy") -> "TargetPolicy":
        """The policy of a name, as it stands in a configuration.

        Raises:
            ValueError: For an unknown name.
        """
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"target_policy is {name!r}; allowed are {', '.join(cls)}.") from None


@dataclasses.dataclass(frozen=True)
class TargetFollower:
    """What a target network holds after its agent was built, has learnt, or has written it; pure functions.

    Attributes:
        updater: Keeps the masks.
        policy: When the target network gets them.
        period: Optimizer steps between two copies, where `after_learning` makes them; None for no target network.
        step_size: Part of the online network in each copy, in (0, 1]; below 1 it is Polyak averaging.

    Raises:
        ValueError: If the policy is unknown, or masks are kept where a target network can't find them.

    Example:
        >>> from sparse_plugins import core
        >>> updater = core.StaticRandomSparse(sparsity_distribution_fn=lambda params: {"w": 0.75})
        >>> params, target = {"w": jnp.ones((4, 4))}, {"w": jnp.zeros((4, 4))}
        >>> follower = TargetFollower(updater, "after_polyak", step_size=0.5)
        >>> float(follower.copied(params, target, updater.wrap_optax(optax.sgd(0.1)).init(params))["w"].sum())
        2.0
    """

    updater: BaseUpdater
    policy: TargetPolicy | str
    period: int | None = 1
    step_size: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", TargetPolicy.of(self.policy))
        if self.updater.use_packed_masks == "zeros":
            raise ValueError(
                "use_packed_masks='zeros' keeps masks in the zeros of the online network, where the target network "
                "can't find them; use True, which takes one bit a weight."
            )

    @property
    def follows_changes(self) -> bool:
        """Whether it gets new masks the moment they change."""
        return self.policy is TargetPolicy.AT_MASK_UPDATE

    @property
    def follows_writes(self) -> bool:
        """Whether it gets masks whenever the agent writes it."""
        return self.policy is TargetPolicy.AFTER_POLYAK

    def onto_masks(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """Parameters of either network on the masks; both trees may have a leading axis of replicas."""
        onto = self.updater.pre_forward_update
        return (jax.vmap(onto) if is_replicated(opt_state) else onto)(params, opt_state)

    def first_params(self, dense: PyTree, opt_state: PyTree) -> PyTree:
        """The online network before the first step, from parameters as they were drawn."""
        first = self.updater.first_params
        return (jax.vmap(first) if is_replicated(opt_state) else first)(dense, opt_state)

    def initial(self, dense: PyTree, opt_state: PyTree) -> PyTree:
        """The target network before the first step, from parameters as they were drawn."""
        if self.period is None:
            return None
        return dense if self.policy is TargetPolicy.DENSE else self.first_params(dense, opt_state)

    def copied(self, params: PyTree, target: PyTree, opt_state: PyTree) -> PyTree:
        """The target network after a copy of the online one, or a step towards it."""
        if self.period is None:
            return None
        if self.step_size == 1.0:
            return jax.tree.map(jnp.copy, params)
        target = optax.incremental_update(params, target, self.step_size)
        return self.onto_masks(target, opt_state) if self.follows_writes else target

    def after_learning(
        self, params: PyTree, target: PyTree, opt_state: PyTree, steps: jax.Array | int, masks_changed: jax.Array | bool
    ) -> PyTree:
        """The target network after an optimizer step, its copy included if one is due.

        Args:
            params: Online parameters after the step.
            target: Parameters of the target network before it.
            opt_state: Optimizer state after the step.
            steps: int32[], optimizer steps so far.
            masks_changed: bool[], whether this one changed masks.
        """
        if self.period is None:
            return None
        is_due = self.period == 1 or steps % self.period == 0
        follows = masks_changed if self.follows_changes else False

        def written() -> PyTree:  # within one branch: XLA copies what passes through two of them
            on_masks = fresh_if(follows, lambda: self.onto_masks(target, opt_state), target)
            return fresh_if(is_due, lambda: self.copied(params, on_masks, opt_state), on_masks)

        return fresh_if(is_due if is_due is True else is_due | follows, written, target)


class HostFollower:
    """A `TargetFollower` beside an agent whose own loop steps on the host, and the optimizer steps counted there.

    To ask the device how many steps there were would wait for it at each of them. So they are counted as they were at
    first, so many each time, and the device is asked only where that count reaches a change of masks. Who puts another
    state into the agent does it within `restoring`, or the target network may get masks late by one such change.

    Args:
        updater: Keeps the masks.
        policy: When the target network gets them.

    Raises:
        ValueError: As `TargetFollower`.
    """

    def __init__(self, updater: BaseUpdater, policy: TargetPolicy | str) -> None:
        self._follower = TargetFollower(updater, policy)
        self.onto_masks, self.initial = jax.jit(self._follower.onto_masks), jax.jit(self._follower.initial)
        self.first_params = jax.jit(self._follower.first_params)
        self._steps, self._is_exact = 0, True  # steps so far, or more where a state was taken over without one
        self._each = 0  # steps from one state to the next; 0 if not known yet
        self._is_restoring = False

    @property
    def updater(self) -> BaseUpdater:
        """Keeps the masks."""
        return self._follower.updater

    @property
    def is_restoring(self) -> bool:
        """Whether the state is being taken from a checkpoint."""
        return self._is_restoring

    def after_step(self, target: PyTree, opt_state: PyTree) -> PyTree:
        """The target network after the agent took over an optimizer state."""
        return self.after_change(target, opt_state) if self._masks_changed(opt_state) else target

    def after_change(self, target: PyTree, opt_state: PyTree) -> PyTree:
        """The same where masks did change."""
        follows = self._follower.follows_changes and not self._is_restoring
        return self.onto_masks(target, opt_state) if follows else target

    def after_write(self, target: PyTree, opt_state: PyTree) -> PyTree:
        """The target network as the agent is about to write it."""
        follows = self._follower.follows_writes and not self._is_restoring
        return self.onto_masks(target, opt_state) if follows else target

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """For a while, the target network is left as it is written: a checkpoint's, with the masks it last met."""
        self._is_restoring = True
        try:
            yield
        finally:
            self._is_restoring = False

    def _masks_changed(self, opt_state: PyTree) -> bool:
        if not self._follower.follows_changes:
            return False
        is_due, most = self._follower.updater.is_refresh_due, self._steps + self._each
        is_known = self._each > 0 and not self._is_restoring
        if is_known and not any(is_due(step) for step in range(self._steps, most)):
            self._steps, self._is_exact = most, False
            return False
        before, self._steps = self._steps, steps_so_far(opt_state)
        if not self._is_restoring:
            made = self._steps - before
            self._each = made if made > (0 if self._is_exact else self._each) else self._each
        self._is_exact = True
        return not self._is_restoring and any(is_due(step) for step in range(before, self._steps))


def is_replicated(opt_state: PyTree) -> bool:
    """Whether an optimizer state has a leading axis of replicas."""
    return np.ndim(find_sparse_state(opt_state).count) > 0


def steps_so_far(opt_state: PyTree) -> int:
    """Asks the device, and waits for it."""
    count = find_sparse_state(opt_state).count
    return int(count[0] if np.ndim(count) else count)
