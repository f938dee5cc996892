"""Dopamine's DQN that recycles dormant neurons (ReDo), sparse.

The agent of `dopamine.labs.redo` samples states through functions that Dopamine's replay no longer has, and its
recyclers write outside masks and find Adam by its position. Here states are drawn apart from the run's own random
numbers, so that looking at neurons changes nothing, and units are recycled by `sparse_plugins.rl.plasticity.redo`.
"""

from collections.abc import Callable
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from dopamine.labs.redo import recycled_dqn_agents, weight_recyclers

from sparse_plugins.core.transform.state import find_sparse_state, map_sparse_states
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.dopamine.bindings import bound
from sparse_plugins.rl.dopamine.metrics import sample_states
from sparse_plugins.rl.dopamine.sparse_agent import SparseAgent
from sparse_plugins.rl.plasticity.activations import hidden_activations, layer_graph, recyclable
from sparse_plugins.rl.plasticity.measures import dormant_units
from sparse_plugins.rl.plasticity.redo import Recycled, check_growable, recycle_inside_mask, recycle_into_growth
from sparse_plugins.rl.target_network import TargetPolicy

__all__ = ["MaskedRecycler", "SparseRecycledDQNAgent"]

_INTO = ("mask", "growth")


@gin.configurable(module="sparse_plugins.rl")
class MaskedRecycler(weight_recyclers.NeuronRecycler):
    """Recycles dormant units with masks, on the schedule of Dopamine's `NeuronRecycler`.

    Its bindings hold: `BaseRecycler.reset_period`, `reset_start_step`, `reset_end_step`, `reset_start_layer_idx`,
    `dead_neurons_threshold` and `logging_period`, in optimizer steps.

    Args:
        agent: The agent, its networks built.
        recycle_into: 'mask' gives units a new start inside their sparse fan-in; 'growth' hands their connections to
            random growth in the same layer.
        **kwargs: What `NeuronRecycler` takes.

    Raises:
        ValueError: If an option is not allowed, or the masks cannot grow single weights.

    Example:
        >>> _ = gin.parse_config(["MaskedRecycler.recycle_into = 'growth'", "BaseRecycler.reset_period = 20_000"])
        >>> gin.query_parameter("MaskedRecycler.recycle_into"); gin.clear_config()
        'growth'

    Source: Sokar et al., The Dormant Neuron Phenomenon in Deep Reinforcement Learning (2023).
    """

    def __init__(self, agent: "SparseRecycledDQNAgent", recycle_into: str = "mask", **kwargs: Any) -> None:
        if recycle_into not in _INTO:
            raise ValueError(f"MaskedRecycler.recycle_into is {recycle_into!r}; allowed are {', '.join(_INTO)}.")
        if recycle_into == "growth":
            check_growable(agent.sparse_params, agent.optimizer_state, agent.updater)
        graph = layer_graph(agent.network_def, agent.sparse_params, _blank_state(agent))
        super().__init__(list(graph), **kwargs)
        if self.init_method_outgoing != "zero" or self.weight_scaling:
            raise ValueError(
                f"NeuronRecycler has init_method_outgoing={self.init_method_outgoing!r} and "
                f"weight_scaling={self.weight_scaling}; with masks what leads out of a unit starts at 0 and what leads "
                "in is scaled to the inputs kept: leave out both bindings."
            )
        next_layers = {name: readers for name, readers in recyclable(graph).items() if name in self.reset_layers}

        def recycle(activations: dict[str, jax.Array], params: PyTree, key: jax.Array, opt_state: PyTree) -> Recycled:
            drawing, growing = jax.random.split(key)
            dormant = dormant_units(activations, self.dead_neurons_threshold)
            fresh = agent.network_def.init(drawing, _blank_state(agent))
            both: dict[str, Any] = {"fresh_params": fresh, "optimizer": agent.optimizer}
            if recycle_into == "mask":
                return recycle_inside_mask(params, opt_state, dormant, next_layers, **both)
            grow = {"updater": agent.updater, "key": growing}
            return recycle_into_growth(params, opt_state, dormant, next_layers, **both, **grow)

        self._recycle = jax.jit(recycle)

    def update_weights(
        self, intermediates: dict[str, Any], params: PyTree, key: jax.Array, opt_state: PyTree
    ) -> Recycled:
        """Parameters and optimizer state with dormant units recycled."""
        return self._recycle(_activations(intermediates), params, key, opt_state)


@gin.configurable(module="sparse_plugins.rl")
class SparseRecycledDQNAgent(SparseAgent, recycled_dqn_agents.RecycledDQNAgent):
    """Dopamine's `RecycledDQNAgent` with masks.

    Args:
        num_actions: Actions the agent can take.
        reset_mode: 'neurons' recycles dormant units; None only counts them.
        num_updates_per_train_step: Optimizer steps per training step; None for what gin binds in `RecycledDQNAgent`.
        **kwargs: What `RecycledDQNAgent` takes, and `updater`, `target_policy`, `frames_per_step` of `sparsify`.

    Raises:
        ValueError: If `reset_mode` is another one of Dopamine's, which know nothing of masks.

    Example:
        >>> SparseRecycledDQNAgent(num_actions=6, network="nature", reset_mode="weights")
        Traceback (most recent call last):
        ValueError: reset_mode is 'weights', which would write outside the masks; allowed are None, 'neurons'. ...
    """

    optimizer: optax.GradientTransformation
    target_network_params: PyTree
    state: np.ndarray
    preprocess_fn: Callable[[np.ndarray], np.ndarray]

    def __init__(
        self,
        num_actions: int,
        reset_mode: str | None = None,
        num_updates_per_train_step: int | None = None,
        **kwargs: Any,
    ) -> None:
        mode = reset_mode or bound("RecycledDQNAgent.reset_mode")
        if mode not in (None, "neurons"):
            raise ValueError(
                f"reset_mode is {mode!r}, which would write outside the masks; allowed are None, 'neurons'."
            )
        if kwargs.get("shrink"):
            raise ValueError(
                "shrink=True, and ReDo gives units a new start that would have left: leave one of them out."
            )
        # The clock of the schedule is read while networks are built, before Dopamine sets this.
        self._num_updates_per_train_step = num_updates_per_train_step or bound(
            "RecycledDQNAgent.num_updates_per_train_step", default=1
        )
        super().__init__(
            num_actions, reset_mode=mode, num_updates_per_train_step=self._num_updates_per_train_step, **kwargs
        )
        if self.optimizer is not self.wrapped_optimizer:
            # Weight decay stands in front now, and the state was made anew from parameters that are sparse already.
            self.wrapped_optimizer = self.optimizer
            self.optimizer_state = map_sparse_states(lambda _: self._built, self.optimizer_state)
        del self._built
        self._activations = jax.jit(lambda params, states: hidden_activations(self.network_def, params, states))
        if mode == "neurons":
            self.weight_recycler = MaskedRecycler(self)

    def _build_networks_and_optimizer(self) -> None:
        super()._build_networks_and_optimizer()
        self._built = find_sparse_state(self.optimizer_state)

    def _training_step_update(self) -> None:
        super()._training_step_update()
        changes_masks = self.weight_recycler.is_reset(self.gradient_step)
        if changes_masks and self.target_policy is TargetPolicy.AT_MASK_UPDATE:
            self.target_network_params = self.follower.onto_masks(self.target_network_params, self.optimizer_state)

    def _sample_batch_for_statistics(self) -> jax.Array:
        """States for the scores of neurons; which ones follows from the seed and the step alone."""
        random = np.random.default_rng((self._seed, self.gradient_step))
        return sample_states(self, random, self.batch_size_statistics)

    def get_intermediates(self, online_params: PyTree) -> dict[str, Any]:
        """Activations of all hidden layers, in the form that Dopamine's recyclers log."""
        hidden = self._activations(online_params, self._sample_batch_for_statistics())
        return {layer: {"__call__": (activations,)} for layer, activations in hidden.items()}


def _activations(intermediates: dict[str, Any]) -> dict[str, jax.Array]:
    return {layer: node["__call__"][0] for layer, node in intermediates.items()}


def _blank_state(agent: SparseRecycledDQNAgent) -> jax.Array:
    return jnp.asarray(agent.preprocess_fn(np.zeros_like(agent.state)))
