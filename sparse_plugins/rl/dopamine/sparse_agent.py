"""Any Dopamine JAX agent, made sparse at its own seams.

The optimizer is wrapped where the agent builds its networks, so that its training step, which is left alone, lands on
the masks, and what the axes of parameters are is read from the network there. Every agent assigns `optimizer_state`
after it has learnt: that assignment is where the target network follows the masks. What the agent acts, learns and is
copied with are its parameters, which are the forward view at every step; straight-through updaters keep their dense
weights in the optimizer state.
"""

import fractions
import types
from collections.abc import Mapping
from typing import Any

import jax
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.identity import identity
from sparse_plugins.core.selection.random_scores import key_of_masks
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.summary import describe_plan
from sparse_plugins.core.transform.state import SparseState, find_sparse_state
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_and_rest
from sparse_plugins.rl.clock import Clock
from sparse_plugins.rl.dopamine.bindings import create_updater_from_config
from sparse_plugins.rl.dopamine.checkpoints.bundles import channels_of, check_bundle, check_shrinks
from sparse_plugins.rl.dopamine.checkpoints.replay_files import is_missing, keep_in_checked_files
from sparse_plugins.rl.dopamine.network_calls import first_call
from sparse_plugins.rl.dopamine.shrinking import Shrinking, graph_of, with_groups
from sparse_plugins.rl.target_network import HostFollower, TargetPolicy

__all__ = ["SparseAgent", "sparsify"]

_OPTIMIZERS = ("optimizer", "network_optimizer")
_ONLINE = ("online_params", "network_params")
_TARGETS = ("target_network_params", "target_params")
# What an agent remembers between two steps and Dopamine's checkpoints leave out.
_BETWEEN_STEPS = ("_rng", "_seed", "_observation", "_last_observation", "action")


class SparseAgent:
    """Mixin in front of an agent class; use `sparsify`.

    Attributes:
        updater: The updater, its schedule counted in optimizer steps. Its random masks come from the agent's own key,
            which follows from its seed, and `rng_seed` together.
        target_policy: When the target network gets the masks.
        clock: How the agent's optimizer steps, environment steps and frames relate.
        follower: How the target network follows the masks.
        wrapped_optimizer: The agent's optimizer on the masks.
        shrinking: When it loses the channels that are pruned, and which are left; None if it keeps them all.
        steps_taken_over: How often the agent took over an optimizer state that it had made.
        first_check: The look at its weights after the first mask update.
        optimizer_attribute: Under which name the agent's class keeps its optimizer,
        online_attribute: its parameters,
        target_attribute: and those of its target network; None if it has none.
    """

    updater: BaseUpdater
    target_policy: TargetPolicy
    clock: Clock
    optimizer_state: PyTree
    network_def: Any  # a Flax module
    observation_shape: tuple[int, ...]
    allow_partial_reload: bool
    _replay: Any
    _rng: jax.Array
    follower: HostFollower
    wrapped_optimizer: optax.GradientTransformationExtraArgs
    shrinking: Shrinking | None
    steps_taken_over: int
    first_check: FirstCheck
    optimizer_attribute: str
    online_attribute: str
    target_attribute: str | None

    def __init__(
        self,
        *args: Any,
        updater: AnyUpdater | None = None,
        target_policy: str | TargetPolicy = TargetPolicy.AT_MASK_UPDATE,
        frames_per_step: int = 1,
        shrink: bool = False,
        **kwargs: Any,
    ) -> None:
        self.shrinking, self._shrinks = None, shrink
        self.target_policy = TargetPolicy.of(target_policy)
        self._frames_per_step = frames_per_step
        chosen = create_updater_from_config() if updater is None else updater
        self._given_updater, kwargs = updater_and_rest(chosen, kwargs, type(self))
        super().__init__(*args, **kwargs)

    @property
    def sparse_state(self) -> SparseState:
        """Masks, schedule count and random key."""
        return find_sparse_state(self.optimizer_state)

    @property
    def sparse_params(self) -> PyTree:
        """What the agent acts with: exactly 0 outside the masks."""
        return getattr(self, self.online_attribute)

    @property
    def target_sparse_params(self) -> PyTree | None:
        """The parameters of the target network, or None if there is none."""
        return None if self.target_attribute is None else getattr(self, self.target_attribute)

    def describe_plan(self) -> str:
        """What the run is going to do: layers and their targets, and when masks are updated in every unit of steps."""
        changes = self.clock.describe(self.updater)
        plan = describe_plan(self.updater, self.sparse_params)
        target = "none" if self.target_attribute is None else self.target_policy
        leave = ["pruned channels leave after the last mask change"] if self.shrinking is not None else []
        return "\n".join([plan, *([changes] if changes else []), f"target network: {target}", *leave])

    def _build_networks_and_optimizer(self) -> None:
        of_masks = key_of_masks(self._rng)  # before networks are drawn from it
        with first_call() as call:
            super()._build_networks_and_optimizer()  # type: ignore[misc]
        self.optimizer_attribute = _first_of(self, _OPTIMIZERS, "an optimizer")
        self.online_attribute = _first_of(self, _ONLINE, "parameters")
        self.target_attribute = next((name for name in _TARGETS if name in vars(self)), None)
        if self.target_attribute is None and self.target_policy is not TargetPolicy.AT_MASK_UPDATE:
            raise ValueError(
                f"target_policy is {self.target_policy!s}, and this agent has no target network: leave it out."
            )
        self.clock = _clock_of(self, self._frames_per_step)
        given = self._given_updater
        knowing = given if given.layers is not None else given.knowing(call.layers(self.sparse_params))
        shrinks = self._shrinks and given.prunes
        if shrinks:
            knowing = with_groups(knowing, graph := graph_of(call, self.sparse_params, type(self).__name__))
        self.updater = self.clock.in_optimizer_steps(knowing).seeded(of_masks)
        self.follower = HostFollower(self.updater, self.target_policy)
        # One object for the agent's life: optimizers are static arguments, and another one would compile again.
        optimizer = getattr(self, self.optimizer_attribute)
        self.wrapped_optimizer = self.updater.wrap_optax(optimizer)
        dense = self.sparse_params
        setattr(self, self.optimizer_attribute, self.wrapped_optimizer)
        self.optimizer_state = self.wrapped_optimizer.init(dense)
        setattr(self, self.online_attribute, self.follower.first_params(dense, self.optimizer_state))
        if self.target_attribute is not None:
            setattr(self, self.target_attribute, self.follower.initial(dense, self.optimizer_state))
        self.steps_taken_over, self.first_check = 0, FirstCheck(self.updater)
        if shrinks:
            self.shrinking = Shrinking(self, optimizer, graph)

    def __setattr__(self, name: str, value: Any) -> None:
        """Passes on, and lets the target network follow the masks; see the module's docstring."""
        before = vars(self)
        if name == "optimizer_state" and "first_check" in before and not self.follower.is_restoring:
            # Here alone parameters and state are of one step, the last one: agents assign them in either order.
            before["steps_taken_over"] += 1
            self.first_check(before["steps_taken_over"] - 1, self.sparse_params, self.optimizer_state)
        target = before.get("target_attribute")
        if target is not None and name == target:
            value = self.follower.after_write(value, self.optimizer_state)
        is_step = target is not None and name == "optimizer_state" and value is not before.get(name)
        super().__setattr__(name, value)
        if is_step:
            super().__setattr__(str(target), self.follower.after_step(self.target_sparse_params, value))
        if name == "training_steps" and before.get("shrinking") is not None and not self.follower.is_restoring:
            self.shrinking.step()  # type: ignore[union-attr]  # an agent counts when it is done with a step

    def _build_replay_buffer(self) -> Any:
        return keep_in_checked_files(super()._build_replay_buffer(), self.observation_shape)  # type: ignore[misc]

    def bundle_and_checkpoint(self, checkpoint_dir: str, iteration_number: int) -> dict[str, Any] | None:
        """The agent's checkpoint, with its random key and what it saw last; the replay is saved to a file."""
        bundle = super().bundle_and_checkpoint(checkpoint_dir, iteration_number)  # type: ignore[misc]
        if bundle is not None:
            bundle["updater"] = identity(self.planned_updater)
            if self.shrinking is not None:
                bundle["channels"] = self.shrinking.channels
            bundle["between_steps"] = {name: vars(self).get(name) for name in _BETWEEN_STEPS}
        return bundle

    @property
    def planned_updater(self) -> BaseUpdater:
        """The updater that the run was begun with, also when its channels have left."""
        return self.updater if self.shrinking is None else self.shrinking.planned

    def bundle_now(self, checkpoint_dir: str, channels: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same of the agent as it is, the replay left alone: what a checkpoint has to look like.

        Args:
            checkpoint_dir: A folder that exists.
            channels: By group bool[channels], those that are left in the checkpoint; None for those of the agent.
        """
        shrinking = None if channels is None else self.shrinking
        before = None if shrinking is None or channels is None else shrinking.take(channels)
        replay, self._replay = self._replay, types.SimpleNamespace(save=lambda *_: None)
        try:
            bundle = self.bundle_and_checkpoint(checkpoint_dir, 0) or {}
            return {name: part for name, part in bundle.items() if name != "updater"}
        finally:
            self._replay = replay
            if shrinking is not None and before is not None:
                shrinking.give_back(before)

    def unbundle(self, checkpoint_dir: str, iteration_number: int, bundle_dictionary: dict[str, Any] | None) -> bool:
        """Goes on from a checkpoint, masks, schedule count and random keys included.

        Returns:
            Whether it does; False where Dopamine's agents say so, as when there is no replay to be read.

        Raises:
            CheckpointMismatchError: If the checkpoint is that of a dense agent, or of one that is sparse in another
                way. To go on with another updater on purpose, take "updater" out of the bundle.
            DamagedFileError: If the replay's file is not what this agent writes.
        """
        is_lost = is_missing(self._replay, checkpoint_dir, iteration_number) and not self.allow_partial_reload
        if bundle_dictionary is None or is_lost:
            return super().unbundle(checkpoint_dir, iteration_number, bundle_dictionary)  # type: ignore[misc]
        name, shrinking = type(self).__name__, self.shrinking
        check_shrinks(bundle_dictionary, shrinking is not None, name)
        before = None if shrinking is None else shrinking.take(channels_of(bundle_dictionary, shrinking.channels, name))
        state, done = self.optimizer_state, False
        # The target network comes back as it was, which may be with the masks of its last copy.
        with self.follower.restoring():
            try:
                check_bundle(bundle_dictionary, self.planned_updater, self.optimizer_state, name)
                self.optimizer_state = bundle_dictionary["optimizer_state"]
                done = super().unbundle(checkpoint_dir, iteration_number, bundle_dictionary)  # type: ignore[misc]
                if done:
                    setattr(
                        self, self.optimizer_attribute, self.wrapped_optimizer
                    )  # some agents have built a bare optimizer
                    between = bundle_dictionary["between_steps"]
                    for name in _BETWEEN_STEPS:
                        setattr(self, name, between[name])
            finally:
                if not done:
                    self.optimizer_state = state
                    if shrinking is not None and before is not None:
                        shrinking.give_back(before)
        if done and shrinking is not None:
            shrinking.wait()
        return done


def sparsify(agent_class: type, name: str | None = None) -> type:
    """A sparse subclass of a Dopamine JAX agent.

    Args:
        agent_class: Agent class that builds its optimizer in `_build_networks_and_optimizer` and passes `params` to
            the optimizer's update.
        name: Name of the new class; 'Sparse' in front of the old one's by default.

    Returns:
        A class whose constructor takes what `agent_class` takes, and `updater` (by default the one that gin's
        `create_updater_from_config` describes; or an algorithm, with what `core.sparsify` takes beside it),
        `target_policy`, `frames_per_step` and `shrink`. With `shrink=True` channels are pruned as wholes, and after the
        last change of masks they leave the agent, which acts, trains, evaluates and is saved small from then on.

    Raises:
        TypeError: If the class is no such agent.

    Example:
        >>> from dopamine.jax.agents.dqn import dqn_agent
        >>> sparsify(dqn_agent.JaxDQNAgent).__name__
        'SparseJaxDQNAgent'
    """
    if not hasattr(agent_class, "_build_networks_and_optimizer"):
        raise TypeError(
            f"{agent_class!r} has no _build_networks_and_optimizer; give a class derived from Dopamine's JaxDQNAgent."
        )
    if issubclass(agent_class, SparseAgent):
        raise TypeError(f"{agent_class.__name__} is sparse already.")
    return type(
        name or f"Sparse{agent_class.__name__}",
        (SparseAgent, agent_class),
        {"__doc__": f"{agent_class.__name__} with masks; see `sparsify`.", "__module__": __name__},
    )


def _first_of(agent: Any, names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in vars(agent):
            return name
    raise TypeError(
        f"{type(agent).__name__} keeps {what} under none of the names {', '.join(names)}, so it can't be made sparse "
        "here; wrap its optimizer with updater.wrap_optax yourself."
    )


def _clock_of(agent: Any, frames_per_step: int) -> Clock:
    """The steps of an agent, as its own attributes give them."""
    settings = vars(agent)
    if "num_epochs" in settings:  # PPO: every batch of experience is read several times, and nothing is collected first
        return Clock(0, fractions.Fraction(settings["batch_size"], settings["num_epochs"]), frames_per_step)
    updates = settings.get("_num_updates_per_train_step", 1)
    return Clock(
        settings["min_replay_history"], fractions.Fraction(settings["update_period"], updates), frames_per_step
    )
