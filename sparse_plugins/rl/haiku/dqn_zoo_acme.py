"""Agents of the shape of DQN Zoo's and Acme's, made sparse from outside.

Both make their optimizer steps without handing over the parameters, which sparsity needs. So the optimizer remembers
them, and a subclass keeps in step what it remembers, what acts and what the target network holds: at the assignment by
which an agent takes over the result of a step. The step itself is left alone.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from sparse_plugins.checkpoints.errors import CheckpointMismatchError
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.identity import identity
from sparse_plugins.core.restored import check_identity
from sparse_plugins.core.selection.random_scores import key_of_masks
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.transform.state import SparseState, find_sparse_state, holds_sparse_state
from sparse_plugins.core.trees import PyTree, leaf_names
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_and_rest
from sparse_plugins.rl.haiku.remembered_params import remember_params, renew_params
from sparse_plugins.rl.target_network import HostFollower, TargetPolicy, is_replicated

__all__ = ["SparseAcmeLearner", "SparseZooAgent", "sparsify_acme", "sparsify_dqn_zoo"]


_KEYS = ("rng_key", "random_key")  # of DQN Zoo, of Acme


class SparseZooAgent:
    """Mixin in front of an agent class of DQN Zoo's shape; use `sparsify_dqn_zoo`."""

    _online_params: Any
    _target_params: Any
    _opt_state: Any

    def __init__(
        self,
        *args: Any,
        optimizer: optax.GradientTransformation,
        updater: AnyUpdater,
        target_policy: str | TargetPolicy = TargetPolicy.AT_MASK_UPDATE,
        **kwargs: Any,
    ) -> None:
        made, kwargs = updater_and_rest(updater, kwargs, type(self))
        made = _seeded(made, super().__init__, args, kwargs)
        self._follower = HostFollower(made, target_policy)
        wrapped = remember_params(made.wrap_optax(optimizer))
        super().__init__(*args, optimizer=wrapped, **kwargs)  # type: ignore[call-arg]
        _check_has(self, self, ("_online_params", "_target_params", "_opt_state"))
        self._target_params = self._follower.initial(self._target_params, self._opt_state)
        self._online_params = self._follower.first_params(self._online_params, self._opt_state)
        self._steps_taken_over, self._first_check = 0, FirstCheck(made)

    @property
    def sparse_state(self) -> SparseState:
        """Masks, schedule count and random key."""
        return find_sparse_state(self._opt_state)

    def get_state(self) -> Mapping[str, Any]:
        """The agent's checkpoint, which says what its updater is."""
        return {**super().get_state(), "updater": identity(self._follower.updater)}  # type: ignore[misc]

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, masks included.

        Raises:
            CheckpointMismatchError: If the checkpoint is that of a dense agent, or of one that is sparse in another
                way. To go on with another updater on purpose, take "updater" out of it.
        """
        _check_same_layout(state["opt_state"], self._opt_state, type(self).__name__)
        wanted, stored = identity(self._follower.updater), state.get("updater")
        check_identity(wanted, stored, f"the checkpoint of {type(self).__name__}")
        with self._follower.restoring():
            super().set_state(state)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        """Passes on, and keeps in step what belongs together; see the module's docstring."""
        others = vars(self)
        if name == "_opt_state" and "_first_check" in others and not self._follower.is_restoring:
            others["_steps_taken_over"] += 1
            self._first_check(others["_steps_taken_over"] - 1, self._online_params, self._opt_state)
        if name == "_target_params" and "_opt_state" in others:
            value = self._follower.after_write(value, self._opt_state)
        super().__setattr__(name, value)
        if name == "_online_params" and "_opt_state" in others:
            super().__setattr__("_opt_state", renew_params(self._opt_state, value))
        if name == "_opt_state" and "_target_params" in others:
            super().__setattr__("_target_params", self._follower.after_step(self._target_params, value))


class SparseAcmeLearner:
    """Mixin in front of a learner class of Acme's shape; use `sparsify_acme`."""

    _state: Any

    def __init__(
        self,
        *args: Any,
        optimizer: optax.GradientTransformation,
        updater: AnyUpdater,
        target_policy: str | TargetPolicy = TargetPolicy.AT_MASK_UPDATE,
        **kwargs: Any,
    ) -> None:
        made, kwargs = updater_and_rest(updater, kwargs, type(self))
        made = _seeded(made, super().__init__, args, kwargs)
        self._follower = HostFollower(made, target_policy)
        wrapped = remember_params(made.wrap_optax(optimizer))
        super().__init__(*args, optimizer=wrapped, **kwargs)  # type: ignore[call-arg]
        _check_has(self, self, ("_state",))
        _check_has(self, self._state, ("params", "target_params", "opt_state"))
        state = self._state
        self._state = state._replace(
            params=self._follower.first_params(state.params, state.opt_state),
            target_params=self._follower.initial(state.target_params, state.opt_state),
        )
        self._steps_taken_over, self._first_check = 0, FirstCheck(made)

    @property
    def sparse_state(self) -> SparseState:
        """Masks, schedule count and random key, of the first device."""
        state = find_sparse_state(self._state.opt_state)
        return jax.tree.map(lambda leaf: leaf[0], state) if is_replicated(state) else state

    def restore(self, state: Any) -> None:
        """Goes on from what `save` gave, masks included.

        Raises:
            CheckpointMismatchError: If it comes from a dense learner, or from one that is sparse in another way.
        """
        _check_same_layout(state.opt_state, self._state.opt_state, type(self).__name__)
        with self._follower.restoring():
            super().restore(state)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        """Passes on, and keeps in step what belongs together; see the module's docstring."""
        others = vars(self)
        if name == "_state" and "_first_check" in others and not self._follower.is_restoring:
            others["_steps_taken_over"] += 1
            check = self._first_check.of_first_seed if is_replicated(value.opt_state) else self._first_check
            check(others["_steps_taken_over"], value.params, value.opt_state)
        if name == "_state" and "_state" in others:
            target = self._follower.after_step(value.target_params, value.opt_state)
            value = value._replace(
                target_params=self._follower.after_write(target, value.opt_state),
                opt_state=renew_params(value.opt_state, value.params),
            )
        super().__setattr__(name, value)


def _seeded(updater: BaseUpdater, constructor: Callable[..., None], args: Any, kwargs: Any) -> BaseUpdater:
    """The updater with random masks of the agent's own key, if its constructor is given one."""
    given = {**inspect.signature(constructor).bind_partial(*args, **kwargs).arguments, **kwargs}
    if key := next((name for name in _KEYS if name in given), None):
        return updater.seeded(key_of_masks(given[key]))
    if alone := updater.describe_seed():
        warnings.warn(f"the agent is given no {' or '.join(_KEYS)}; {alone}.", stacklevel=3)
    return updater


def sparsify_dqn_zoo(agent_class: type) -> type:
    """A sparse subclass of an agent of DQN Zoo's shape: DQN, double, prioritized, C51, QR-DQN, Rainbow, IQN.

    Args:
        agent_class: Agent that takes `optimizer` by name, keeps `_online_params`, `_target_params` and `_opt_state`,
            changes them by assignment, and has get_state and set_state.

    Returns:
        A class whose constructor takes what `agent_class` takes, `target_policy`, and `updater`: an updater, or an
        algorithm with what `core.sparsify` takes beside it. Its get_state carries the masks. Random ones are
        drawn from the agent's `rng_key` and the updater's `rng_seed` together; from `rng_seed` alone, with a warning,
        if the agent takes no such key.

    Raises:
        TypeError: If the class has no such methods; when an agent is built, if it has no such attributes.

    Example:
        >>> class Agent:
        ...     def __init__(self, optimizer, params, rng_key):
        ...         self._online_params = self._target_params = params
        ...         self._opt_state = optimizer.init(params)
        ...     def get_state(self): ...
        ...     def set_state(self, state): ...
        >>> agent = sparsify_dqn_zoo(Agent)(
        ...     params={"w": jax.numpy.ones((4, 4))}, rng_key=jax.random.key(0), optimizer=optax.sgd(0.1),
        ...     updater="static_sparse", sparsity=0.75)
        >>> int(jax.numpy.count_nonzero(agent._target_params["w"]))
        4

    Source: Quan and Ostrovski, DQN Zoo (2020).
    """
    return _subclass(SparseZooAgent, agent_class, ("get_state", "set_state"))


def sparsify_acme(learner_class: type) -> type:
    """A sparse subclass of a learner of the shape of Acme's DQN and R2D2.

    If a learner makes several optimizer steps per `step`, its target network follows the masks after the last of them.

    Args:
        learner_class: Learner that takes `optimizer` by name, keeps a named tuple `_state` with params, target_params
            and opt_state, with a leading axis of devices or without, and has save and restore.

    Returns:
        A class whose constructor takes what `learner_class` takes, and `updater` and `target_policy` as in
        `sparsify_dqn_zoo`. What it saves carries the masks. Random ones are drawn from the learner's `random_key`.

    Raises:
        TypeError: If the class has no such methods; when a learner is built, if it has no such attributes.

    Example:
        >>> sparsify_acme(dict)
        Traceback (most recent call last):
        TypeError: dict has no save, restore, so it can't be made sparse here; ...

    Source: Hoffman et al., Acme (2020).
    """
    return _subclass(SparseAcmeLearner, learner_class, ("save", "restore"))


def _check_same_layout(restored: PyTree, expected: PyTree, who: str) -> None:
    """Refuses an optimizer state from a checkpoint that is not laid out as that of the agent.

    Args:
        restored: Optimizer state that is to be gone on from, of one replica.
        expected: The optimizer state that the agent has.
        who: Name of the agent, for the message.

    Raises:
        CheckpointMismatchError: If the state holds no masks, or other layers, target sparsities or optimizers.
    """
    remedy = f"Build {who} as the agent was built that wrote it; nothing has been changed."
    if not holds_sparse_state(restored):
        raise CheckpointMismatchError(f"the checkpoint holds no masks: it was written by a dense agent. {remedy}")
    expected = jax.tree.map(lambda leaf: leaf[0], expected) if is_replicated(expected) else expected
    if differing := dict(_layout(restored).items() ^ _layout(expected).items()):
        raise CheckpointMismatchError(
            f"the checkpoint is laid out differently, for example at {sorted(differing)[0]!r}. {remedy}"
        )
    theirs, ours = (
        [float(target) for target in jax.tree.leaves(find_sparse_state(state).target_sparsities)]
        for state in (restored, expected)
    )
    if theirs != ours:
        raise CheckpointMismatchError(
            f"the checkpoint has target sparsities {theirs}, and {who} asks for {ours}. {remedy}"
        )


def _subclass(mixin: type, base: type, methods: tuple[str, ...]) -> type:
    if issubclass(base, (SparseZooAgent, SparseAcmeLearner)):
        raise TypeError(f"{base.__name__} is sparse already.")
    _check_has(base, base, methods)
    text = f"{base.__name__} with masks."
    return type(f"Sparse{base.__name__}", (mixin, base), {"__doc__": text, "__module__": __name__})


def _check_has(agent: Any, owner: Any, names: tuple[str, ...]) -> None:
    if missing := [name for name in names if not hasattr(owner, name)]:
        agent_class = agent if isinstance(agent, type) else type(agent)
        raise TypeError(
            f"{agent_class.__name__} has no {', '.join(missing)}, so it can't be made sparse here; wrap its optimizer "
            "with remember_params(updater.wrap_optax(optimizer)) yourself."
        )


def _layout(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(leaf) for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)}
