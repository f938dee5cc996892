"""How sparse each layer is: parameters in, one target sparsity per leaf out.

Only names, shapes and dtypes are read, so a distribution gives the same plan inside and outside jit. An updater that
knows layers gives a `LayerShape` in place of each parameter: one layer of a stack, a bias with one axis.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.core.path_rules import first_match, read_rule
from sparse_plugins.core.selection.counts import check_fraction, keep_count
from sparse_plugins.core.trees import PyTree, leaf_names, prunable_dtype

__all__ = ["SHARED", "FilterFn", "Rules", "erk", "kernels_only", "not_dim_one", "resolve", "rules_of_map", "uniform"]

FilterFn = Callable[[tuple[str, ...], Any], bool]
Rules = Sequence[tuple[str, float | Literal["default"] | None]]
SHARED = "default"


def not_dim_one(key: tuple[str, ...], param: Any) -> bool:
    """The default filter: floating-point leaves with two or more axes are pruned."""
    return len(param.shape) > 1 and prunable_dtype(param)


# With those of recurrent cells: 'recurrent_kernel', 'w_i', 'w_h', 'weight_ih', 'weight_hh'.
_KERNEL = re.compile(r"(.*_)?kernel|w(_[ih])?|weight(_[ih]h)?")


def kernels_only(key: tuple[str, ...], param: Any) -> bool:
    """A filter that prunes weights of layers by name: Flax and Keras 'kernel', Haiku 'w', Equinox 'weight'.

    Embeddings of Equinox are called 'weight' too: leave them out by a rule.

    Example:
        >>> import jax.numpy as jnp
        >>> kernels_only(("cell", "recurrent_kernel"), jnp.ones((4, 4))), kernels_only(("bias",), jnp.ones((8, 1, 1)))
        (True, False)
    """
    path = key[:-1] if key[-1] == "value" else key  # boxed parameters of Linen end in 'kernel/value'
    return bool(path) and bool(_KERNEL.fullmatch(path[-1])) and not_dim_one(key, param)


def uniform(
    params: PyTree,
    sparsity: float,
    filter_fn: FilterFn = not_dim_one,
    custom_sparsity_map: Mapping[Sequence[str] | str, float] | None = None,
    rules: Rules = (),
) -> PyTree:
    """The same sparsity for every pruned layer.

    Args:
        params: Parameter tree; arrays or anything with shape and dtype.
        sparsity: Fraction of zeros in [0, 1].
        filter_fn: Called with the path of a leaf as a tuple of names, and the leaf; True = prune.
        custom_sparsity_map: Sparsity by path, for layers that differ.
        rules: Pairs (regular expression, sparsity) matched against the whole path 'a/b/kernel'; the first match wins
            and comes before the filter. A sparsity of None leaves the layer dense, 'default' prunes it like others.
            Where the filter prunes some of the leaves that a rule decides about, as the kernel beside a bias, vectors
            among them that it does not prune stay dense.

    Returns:
        Tree of Python floats with the structure of `params`; `NOT_PRUNED` where a leaf stays dense.

    Raises:
        ValueError: For a sparsity outside [0, 1] or a rule that matches no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"body": {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}, "head": {"w": jnp.ones((4, 2))}}
        >>> plan = uniform(params, 0.8, rules=[("head/w", 0.5)])
        >>> plan["body"]["w"], plan["head"]["w"]
        (0.8, 0.5)
    """
    sparsity = check_fraction("sparsity", sparsity)
    treedef = jax.tree.structure(params)
    plan = resolve(params, filter_fn, custom_sparsity_map, rules)
    return jax.tree.unflatten(treedef, [sparsity if target == SHARED else target for target in plan])


def erk(
    params: PyTree,
    sparsity: float,
    filter_fn: FilterFn = not_dim_one,
    custom_sparsity_map: Mapping[Sequence[str] | str, float] | None = None,
    rules: Rules = (),
) -> PyTree:
    """Erdos-Renyi-Kernel: density in proportion to (sum of axes) / (product of axes), so small layers stay denser.

    Where an updater knows layers, every layer of a stack counts by itself, and its axes are its window, inputs and
    outputs.

    A layer that would exceed density 1 is kept dense and its share goes to the others, until the layers together
    keep exactly `round((1 - sparsity) * entries)` entries, each at least one. Layers with a fixed sparsity of their own
    are outside this budget, as in the paper.

    Args:
        params: Parameter tree; arrays or anything with shape and dtype.
        sparsity: Fraction of zeros in [0, 1] over all layers without a sparsity of their own.
        filter_fn: As in `uniform`.
        custom_sparsity_map: As in `uniform`.
        rules: As in `uniform`.

    Returns:
        Tree of Python floats with the structure of `params`; `NOT_PRUNED` where a leaf stays dense, and a tuple of
        floats where layers of a stack differ by rounding.

    Raises:
        ValueError: For a sparsity outside [0, 1], a rule that matches no leaf, or a budget of fewer entries than
            layers (the message gives the highest sparsity that works).

    Example:
        >>> import jax.numpy as jnp
        >>> plan = erk({"small": jnp.ones((2, 2)), "large": jnp.ones((100, 100))}, 0.9)
        >>> plan["small"], round(plan["large"], 4)
        (0.0, 0.9004)

    Source: Evci et al., Rigging the Lottery (2020); Mocanu et al. (2018).
    """
    sparsity = check_fraction("sparsity", sparsity)
    leaves, treedef = jax.tree.flatten(params)
    plan = resolve(params, filter_fn, custom_sparsity_map, rules)
    shared = [i for i, target in enumerate(plan) if target == SHARED and math.prod(leaves[i].shape)]
    layers = _unrolled(shared, [getattr(leaves[i], "layers", 1) for i in shared])
    kept = _erk_counts([tuple(leaves[i].shape) for i in layers], sparsity)
    layer_targets: dict[int, list[float]] = {}
    for i, count in zip(layers, kept, strict=True):
        layer_targets.setdefault(i, []).append(1.0 - count / math.prod(leaves[i].shape))
    for i, targets in layer_targets.items():
        plan[i] = targets[0] if len(set(targets)) == 1 else tuple(targets)
    return jax.tree.unflatten(treedef, [sparsity if target == SHARED else target for target in plan])


def _unrolled(leaves: Sequence[int], layers: Sequence[int]) -> list[int]:
    """Every leaf once for each of its layers; stacks side by side in turns, as the blocks of an unrolled model."""
    stacks = itertools.groupby(zip(leaves, layers, strict=True), key=lambda pair: pair[1])
    return [leaf for count, stack in stacks for leaf in [leaf for leaf, _ in stack] * count]


def _erk_counts(shapes: list[tuple[int, ...]], sparsity: float) -> list[int]:
    """Kept entries per layer, adding up to the budget exactly."""
    sizes = np.array([math.prod(shape) for shape in shapes], np.int64)
    budget = keep_count(int(sizes.sum()), sparsity)
    weight = np.array([sum(shape) for shape in shapes], np.float64)  # density factor * size
    dense = np.zeros(len(shapes), bool)
    share = np.zeros(len(shapes))
    while not dense.all():
        left = budget - sizes[dense].sum()
        share = np.where(dense, sizes, weight * (left / weight[~dense].sum()))
        too_dense = ~dense & (share > sizes)
        if not too_dense.any():
            break
        dense |= too_dense
    if 0 < budget < len(shapes):
        highest = math.floor((1 - len(shapes) / int(sizes.sum())) * 1e9) / 1e9
        raise ValueError(
            f"ERK at sparsity {sparsity} may keep {budget} entries in all, fewer than there are layers ({len(shapes)})"
            f"; the highest sparsity without an empty layer is {highest}. Lower the sparsity, use `uniform`, or give "
            "small layers a rule."
        )
    kept = np.clip(np.floor(np.where(dense, sizes, share)).astype(np.int64), min(budget, 1), sizes)
    missing = budget - int(kept.sum())
    if missing < 0:  # layers lifted to one entry: the largest pay
        for _ in range(-missing):
            kept[np.argmax(kept)] -= 1
    else:  # what rounding left goes to the largest remainders
        by_remainder = np.argsort(-(share - kept), kind="stable")
        for i in [i for i in by_remainder if kept[i] < sizes[i]][:missing]:
            kept[i] += 1
    return [int(count) for count in kept]


def resolve(
    params: PyTree,
    filter_fn: FilterFn = not_dim_one,
    custom_sparsity_map: Mapping[Sequence[str] | str, float] | None = None,
    rules: Rules = (),
) -> list[Any]:
    """What is decided about each leaf before a distribution divides the rest.

    Args:
        params: Parameter tree.
        filter_fn: As in `uniform`.
        custom_sparsity_map: As in `uniform`.
        rules: As in `uniform`.

    Returns:
        One entry per leaf: a float (its own sparsity), `SHARED` (the distribution decides) or `NOT_PRUNED`.

    Raises:
        ValueError: If a rule matches no leaf, or prunes a leaf that is not floating-point.
    """
    names, leaves = leaf_names(params), jax.tree.leaves(params)
    checked = [_checked_rule(rule) for rule in [*rules_of_map(custom_sparsity_map), *rules]]
    decided_by = first_match([pattern for pattern, _ in checked], names)
    passes = [
        (rule is None or checked[rule][1] is not NOT_PRUNED)
        and prunable_dtype(leaf)
        and filter_fn(tuple(name.split("/")), leaf)
        for name, leaf, rule in zip(names, leaves, decided_by, strict=True)
    ]
    # A rule for 'head/.*' means the kernel and not the bias beside it; one for 'head/bias' means what it says.
    about_filtered = {rule for rule, is_passed in zip(decided_by, passes, strict=True) if is_passed}

    def decide(name: str, leaf: Any, rule: int | None, is_passed: bool) -> Any:
        if rule is None:
            return SHARED if is_passed else NOT_PRUNED
        pattern, target = checked[rule]
        if prunable_dtype(leaf) and not is_passed and len(np.shape(leaf)) < 2 and rule in about_filtered:
            return NOT_PRUNED
        if target is not NOT_PRUNED and not prunable_dtype(leaf):
            raise ValueError(
                f"rule {pattern!r} prunes {name!r}, which is no floating array: narrow the pattern, or put "
                f"({name!r}, None) before it."
            )
        return target

    return [decide(*column) for column in zip(names, leaves, decided_by, passes, strict=True)]


def rules_of_map(custom_sparsity_map: Mapping[Sequence[str] | str, float] | None) -> list[tuple[str, Any]]:
    """The rules that the paper's way to name layers stands for.

    Args:
        custom_sparsity_map: As in `uniform`.

    Example:
        >>> rules_of_map({("head", "w"): 0.5, "body/w": None})
        [('head/w', 0.5), ('body/w', None)]
    """
    return [(re.escape("/".join(_key(key))), value) for key, value in (custom_sparsity_map or {}).items()]


def _key(key: Sequence[str] | str) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else tuple(map(str, key))


def _checked_rule(rule: Any) -> tuple[str, Any]:
    pattern, value = read_rule(rule, "sparsity", "('head/.*', 0.5)")
    if value is None:
        return pattern, NOT_PRUNED
    return pattern, SHARED if value == SHARED else check_fraction(f"sparsity of rule {pattern!r}", value)
