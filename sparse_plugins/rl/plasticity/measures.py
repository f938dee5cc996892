"""How much of a network still learns: dormant units, effective rank, policy churn, distance to the target network."""

import jax
import jax.numpy as jnp

from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.selection.counts import check_fraction, check_positive
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = [
    "action_distance",
    "dormant_share",
    "dormant_units",
    "network_distance",
    "policy_churn",
    "srank",
    "unit_scores",
]


def unit_scores(activations: PyTree) -> PyTree:
    """How active each unit is, in units of its layer's mean.

    Args:
        activations: Tree of real arrays [..., units], one per layer. Everything before the last axis is averaged over:
            batch, quantiles, and for feature maps space.

    Returns:
        Tree of float32[units]: mean absolute activation of the unit / mean over the layer; 0 in a layer that is all 0.

    Example:
        >>> unit_scores({"dense": jnp.array([[1.0, 0.0], [-5.0, 0.0]])})["dense"].tolist()
        [2.0, 0.0]

    Source: Sokar et al., The Dormant Neuron Phenomenon in Deep Reinforcement Learning (2023), definition 3.1.
    """

    def scores(layer: jax.Array) -> jax.Array:
        size = jnp.abs(layer.astype(jnp.float32))
        mean = jnp.mean(size.reshape(-1, layer.shape[-1]), axis=0)
        of_layer = jnp.mean(mean)
        return jnp.where(of_layer == 0, 0.0, mean / jnp.where(of_layer == 0, 1.0, of_layer))

    return jax.tree.map(scores, activations)


def dormant_units(activations: PyTree, threshold: float = 0.025) -> PyTree:
    """Which units are dormant.

    Args:
        activations: Tree of real arrays [..., units], one per layer, after the nonlinearity.
        threshold: A unit is dormant if its score (see `unit_scores`) is at most this; at least 0. With 0 only units
            that never fire are.

    Returns:
        Tree of bool[units]. A unit whose activations are NaN is not dormant.

    Raises:
        ValueError: If the threshold is negative or no number.

    Example:
        >>> dormant_units({"dense": jnp.array([[1.0, 0.0, 0.02]])})["dense"].tolist()
        [False, True, False]

    Source: Sokar et al., The Dormant Neuron Phenomenon in Deep Reinforcement Learning (2023).
    """
    limit = check_positive("threshold", threshold, or_zero=True)
    return jax.tree.map(lambda scores: scores <= limit, unit_scores(activations))


def dormant_share(dormant: PyTree) -> jax.Array:
    """Fraction of units that are dormant, over all layers.

    Args:
        dormant: Tree of bool[units] as `dormant_units` gives it.

    Returns:
        float32[] in [0, 1]; 0 if there are no units.

    Example:
        >>> float(dormant_share({"a": jnp.array([True]), "b": jnp.array([False, False, False])}))
        0.25
    """
    layers = jax.tree.leaves(dormant)
    units = sum(layer.size for layer in layers)
    return jnp.float32(sum(jnp.count_nonzero(layer) for layer in layers)) / max(units, 1)


def srank(features: jax.Array, delta: float = 0.01) -> jax.Array:
    """Effective rank of features: how many singular values make up (1 - delta) of the sum of all.

    Args:
        features: Real array [batch, features], usually what the last layer reads.
        delta: Part of the sum that may be left out, in [0, 1).

    Returns:
        int32[], at most min(batch, features); 0 if the features are all 0.

    Raises:
        ValueError: If `features` has not two axes, or delta is outside [0, 1).

    Example:
        >>> int(srank(jnp.diag(jnp.array([60.0, 39.0, 1.0, 0.0]))))
        2

    Source: Kumar et al., Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning (2021).
    """
    if jnp.ndim(features) != 2:
        raise ValueError(
            f"features have shape {jnp.shape(features)}; give [batch, features], feature maps reshaped to one row each."
        )
    if check_fraction("delta", delta) == 1.0:
        raise ValueError("delta is 1.0, which leaves nothing to be ranked; give a number in [0, 1), e.g. 0.01.")
    summed = jnp.cumsum(jnp.linalg.svd(features.astype(jnp.float32), compute_uv=False))
    if not summed.size:
        return jnp.int32(0)
    too_few = jnp.count_nonzero(summed < (1.0 - delta) * summed[-1])
    return jnp.where(summed[-1] > 0, too_few + 1, 0).astype(jnp.int32)


def policy_churn(q_before: jax.Array, q_after: jax.Array) -> jax.Array:
    """Fraction of states in which the greedy action is another one.

    Args:
        q_before: Real array [..., actions]: action values of some states before an update.
        q_after: The same states after it.

    Returns:
        float32[] in [0, 1]. Ties go to the first action, as in `argmax`.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> float(policy_churn(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[2.0, 1.0], [1.0, 0.0]])))
        0.5

    Source: Schaul et al., The Phenomenon of Policy Churn (2022).
    """
    _check_same_shape("action values", q_before, q_after)
    return jnp.mean(jnp.argmax(q_before, axis=-1) != jnp.argmax(q_after, axis=-1), dtype=jnp.float32)


def action_distance(before: jax.Array, after: jax.Array) -> jax.Array:
    """Mean absolute difference of the actions that a continuous policy chooses: its churn.

    Args:
        before: Real array [..., action size]: actions in some states before an update.
        after: The same states after it.

    Returns:
        float32[], in the units of the actions.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> float(action_distance(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 1.0]])))
        0.25
    """
    _check_same_shape("actions", before, after)
    return jnp.mean(jnp.abs(before.astype(jnp.float32) - after.astype(jnp.float32)))


def network_distance(online: PyTree, target: PyTree, *, masks: PyTree | None = None) -> dict[str, jax.Array]:
    """How far two networks are apart, in values and in which weights they use.

    Args:
        online: Parameters in use.
        target: Parameters of the same structure, such as those of the target network.
        masks: Mask tree, packed or not, that says which leaves can be pruned; by default those with two or more axes.

    Returns:
        'l2': float32[], Euclidean distance over all parameters. 'mask_hamming': float32[] in [0, 1], the fraction of
        prunable entries that are 0 in exactly one of the two; 0 if nothing can be pruned.

    Raises:
        ValueError: If the trees have different structures or shapes.

    Example:
        >>> distance = network_distance({"w": jnp.array([[3.0, 0.0]])}, {"w": jnp.array([[0.0, 4.0]])})
        >>> float(distance["l2"]), float(distance["mask_hamming"])
        (5.0, 1.0)
    """
    pairs = list(zip(jax.tree.leaves(online), aligned(online, target, "target parameters"), strict=True))
    for name, (param, target_param) in zip(leaf_names(online), pairs, strict=True):
        _check_same_shape(f"parameters {name!r}", param, target_param)
    prunable = (
        [param.ndim > 1 for param, _ in pairs]
        if masks is None
        else [is_pruned(mask) for mask in aligned(online, masks, "masks")]
    )
    squares = [jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))) for a, b in pairs]
    counted = [pair for pair, is_in in zip(pairs, prunable, strict=True) if is_in]
    # Counted as integers; floats only for the ratio, which no model is too large for.
    differing = sum((jnp.count_nonzero((a == 0) != (b == 0)).astype(jnp.float32) for a, b in counted), jnp.float32(0))
    return {
        "l2": jnp.sqrt(sum(squares, jnp.float32(0))),
        "mask_hamming": differing / max(sum(a.size for a, _ in counted), 1),
    }


def _check_same_shape(what: str, array: jax.Array, other_array: jax.Array) -> None:
    if jnp.shape(array) != jnp.shape(other_array):
        raise ValueError(f"{what} have shapes {jnp.shape(array)} and {jnp.shape(other_array)}; give the same for both.")
