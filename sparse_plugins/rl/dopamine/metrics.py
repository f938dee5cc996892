"""What a run reports after each iteration: returns, steps, sparsity, how masks move and, on demand, plasticity."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from dopamine.jax.agents.dqn import dqn_agent

from sparse_plugins import core
from sparse_plugins.core.masks import kept as kept_by
from sparse_plugins.core.masks import map_pruned
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl import plasticity
from sparse_plugins.rl.dopamine.checkpoints.run_folder import write_whole
from sparse_plugins.rl.dopamine.sparse_agent import SparseAgent
from sparse_plugins.rl.plasticity import activations

__all__ = ["IterationMetrics", "MetricsFile", "sample_states"]

Number = int | float


@gin.configurable(module="sparse_plugins.rl")
class IterationMetrics:
    """Measures an agent once per iteration, and never touches it.

    Args:
        agent: A sparse agent.
        plasticity: Whether to measure dormant units, effective rank and policy churn, on states from the replay.
        states: How many states that takes.
        dormant_threshold: See `plasticity.dormant_units`.
        seed: Which states; they are drawn apart from the agent's own random numbers.

    Raises:
        ValueError: If plasticity is asked for and `states` is less than 1.
    """

    def __init__(
        self,
        agent: SparseAgent,
        plasticity: bool = False,
        states: int = 256,
        dormant_threshold: float = 0.025,
        seed: int = 0,
    ) -> None:
        if plasticity and states < 1:
            raise ValueError(f"IterationMetrics.states is {states}; give the number of states to measure on, above 0.")
        if plasticity and agent.shrinking is not None:
            raise ValueError(
                "IterationMetrics.plasticity is True, and with shrink=True hidden units leave the network, so that "
                "nothing of them can be compared: leave out one of the two."
            )
        self._agent, self._with_plasticity, self._states = agent, plasticity, states
        self._threshold, self._seed = dormant_threshold, seed
        self._remember()

    def measure(self, iteration: int) -> dict[str, Number]:
        """Measures the agent, against the last call where there is something to compare.

        Args:
            iteration: Its number, which chooses the states.

        Returns:
            'optimizer_steps', 'sparsity' (fraction of the pruned layers that is outside their masks), 'target_sparsity'
            (fraction of zeros there in the target network; a weight that has just been grown may still be 0),
            'mask_overlap' (of the masks before the iteration, the fraction kept), 'target_l2', 'target_mask_hamming'
            (see `plasticity.network_distance`), 'parameters' of an agent whose channels leave: from then on all others
            are of the network that is left, and the overlap of that iteration of what is left. Without a target network
            only the others. With plasticity also 'dormant_share', 'srank' and 'policy_churn', or for continuous actions
            'action_distance'; none of these while the replay is empty.
        """
        agent = self._agent
        masks = agent.sparse_state.masks
        before = masks if self._channels != self._channels_now else self._masks  # what is kept of what is left is kept
        measured = _compare(agent.sparse_params, agent.target_sparse_params, masks, before)
        row: dict[str, Number] = {"optimizer_steps": int(agent.sparse_state.count)}
        row |= {name: float(value) for name, value in jax.device_get(measured).items()}
        if agent.shrinking is not None:
            row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(agent.sparse_params))
        if self._with_plasticity and agent._replay.add_count:
            row |= self._plasticity(iteration)
        self._remember()
        return row

    def _remember(self) -> None:
        self._masks, self._params = self._agent.sparse_state.masks, self._agent.sparse_params
        self._channels = self._channels_now

    @property
    def _channels_now(self) -> Any:
        """Something that changes when channels leave; packed masks of fewer channels may have the same shapes."""
        return jax.tree.map(jnp.shape, self._agent.sparse_params)

    def _plasticity(self, iteration: int) -> dict[str, Number]:
        agent = self._agent
        states = sample_states(agent, np.random.default_rng((self._seed, iteration)), self._states)
        inputs, options = _further_inputs(agent)
        network = (agent.network_def, agent.sparse_params, states, *inputs)
        activation = getattr(agent.network_def, "activation", jax.nn.relu)  # PPO's is tanh
        hidden = activations.hidden_activations(*network, activation=activation, **options)
        features = activations.penultimate_features(*network, **options)
        before, after = (
            jax.vmap(lambda state, params=params: agent.network_def.apply(params, state, *inputs, **options))(states)
            for params in (self._params, agent.sparse_params)
        )
        dormant = plasticity.dormant_units(hidden, self._threshold)
        return {
            "dormant_share": float(plasticity.dormant_share(dormant)),
            "srank": int(plasticity.srank(features)),
            **_policy_change(before, after),
        }


def sample_states(agent: dqn_agent.JaxDQNAgent, random: np.random.Generator, size: int) -> jax.Array:
    """States from an agent's replay, drawn without its sampler, whose random numbers the agent needs.

    Args:
        agent: A Dopamine agent whose replay is not empty.
        random: Draws them, uniformly and with replacement.
        size: How many.

    Returns:
        [size, ...], preprocessed as for the network.
    """
    replay = agent._replay
    keys = list(replay._memory)
    elements = (replay._memory[keys[place]] for place in random.integers(len(keys), size=size))
    states = np.stack([(element.unpack() if replay._compress else element).state for element in elements])
    preprocess = getattr(agent, "preprocess_fn", None)
    return jnp.asarray(states if preprocess is None else preprocess(states))


class MetricsFile:
    """A CSV with one row per iteration, always whole on disk.

    Args:
        path: Where it is, or will be.
        start: The first iteration that is still to come; rows from there on are of lost iterations and cut.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "metrics.csv"
        ...     MetricsFile(path, start=0).append({"iteration": 0, "train_return": 9.5})
        ...     MetricsFile(path, start=1).append({"iteration": 1, "train_return": 10.25})
        ...     path.read_text().split()
        ['iteration,train_return', '0,9.5', '1,10.25']
    """

    def __init__(self, path: str | Path, start: int) -> None:
        self._path = Path(path)
        self._rows: list[Mapping[str, object]] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["iteration"]) < start]

    def append(self, row: Mapping[str, object]) -> None:
        """Adds a row; columns it has first are empty in the rows before it."""
        self._rows.append(row)
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_whole(self._path, text.getvalue())


@jax.jit
def _compare(params: PyTree, target: PyTree | None, masks: PyTree, masks_before: PyTree) -> dict[str, jax.Array]:
    kept = map_pruned(kept_by, params, masks, otherwise=lambda param: param)
    shared = core.summarize_intersection(masks_before, masks, True)["_total_intersection"]
    measured = {
        "sparsity": core.summarize_sparsity(kept, True, masks=masks)["_total_sparsity"],
        "mask_overlap": shared if jax.tree.leaves(masks) else jnp.float32(1),  # a dense run keeps all it has
    }
    if target is not None:
        distance = plasticity.network_distance(params, target, masks=masks)
        measured |= {
            "target_sparsity": core.summarize_sparsity(target, True, masks=masks)["_total_sparsity"],
            "target_l2": distance["l2"],
            "target_mask_hamming": distance["mask_hamming"],
        }
    return measured


def _further_inputs(agent: dqn_agent.JaxDQNAgent) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the agent's network takes beside a state, without noise where there is a choice."""
    key = jax.random.PRNGKey(0)
    settings = vars(agent)
    if "_noisy" in settings:  # full Rainbow and its kin
        return (agent._support,), {"eval_mode": True, "key": key}
    if "num_quantile_samples" in settings:  # implicit quantiles
        return (agent.num_quantile_samples, key), {}
    if "network_params" in settings:  # actor and critic
        return (key,), {}
    return ((agent._support,), {}) if "_support" in settings else ((), {})


def _policy_change(before: Any, after: Any) -> dict[str, Number]:
    if hasattr(before, "actor"):
        names = ("mean_action", "sampled_action")  # PPO has the second only, here from the same random numbers
        old, new = (
            next(getattr(output.actor, name) for name in names if hasattr(output.actor, name))
            for output in (before, after)
        )
        return {"action_distance": float(plasticity.action_distance(old, new))}
    old, new = (
        output.quantile_values.mean(axis=1) if hasattr(output, "quantile_values") else output.q_values
        for output in (before, after)
    )
    return {"policy_churn": float(plasticity.policy_churn(old, new))}
