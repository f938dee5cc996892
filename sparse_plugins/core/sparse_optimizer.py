"""An optimizer made sparse in one call, and the way back from it to its updater."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import build_updater

__all__ = ["changed_afterwards", "sparsify", "start", "updater_of", "what_follows"]


def sparsify(
    optimizer: optax.GradientTransformation,
    algorithm: str | type[BaseUpdater] | BaseUpdater,
    *,
    sparsity: float | None = None,
    total_steps: int | None = None,
    distribution: Literal["erk", "uniform"] | Callable | None = None,
    rules: Sequence[tuple[str, Any]] = (),
    structure: Any = None,
    layers: Any = None,
    preset: Literal["jaxpruner"] | None = None,
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose parameters are sparse, with what papers use wherever nothing is said.

    By family of algorithms: pruning goes along a cubic from 20 to 75% of the run. SET, RigL and related algorithms drop
    and grow weights from the first step to 75%, about a hundred times, a fraction of them that falls along a cosine.
    Static masks and pruning at initialization have no schedule. Straight-through estimation follows the weights.

    Args:
        optimizer: Any optax transformation; the result goes in its place, last in a chain.
        algorithm: One of `all_algorithm_names()`, a class of updaters, or an updater, which then says everything.
        sparsity: Fraction of zeros in [0, 1]; an n:m structure is one by itself.
        total_steps: Calls of `update` in the whole run. Algorithms that update masks while they train need it.
        distribution: How the sparsity is divided among layers: 'erk' (what None means), 'uniform', or a function like
            them. Algorithms that rank all layers together take none.
        rules: Layers that differ: pairs (regular expression for a whole path 'a/b/kernel', what), of which the first
            that matches decides. What is None (dense), a sparsity, a structure such as '2:4', an algorithm, or a
            mapping with some of 'sparsity', 'structure' and 'algorithm'.
        structure: None for the algorithm's default, mostly single weights; one of `'2:4'`, `'4x4'`, `'channel_-1'`,
            `'fan_in_-1'`; or an instance such as `NByM(2, 4)`.
        layers: What the axes of parameters are, from `trace_layers`; for updaters with such a field.
        preset: 'jaxpruner' for the settings of its paper: uniform sparsity, and a drop fraction that falls from 0.1.
        **settings: `drop_fraction` (at step 0), `update_start_step`, `update_end_step`, `update_freq`, `step_unit`,
            `filter_fn`, `custom_sparsity_map` (the paper's form of `rules`), and every field of the updater's class,
            such as `rng_seed` or `scheduler`.

    Returns:
        The transformation. `start` gives the parameters and the state to begin with, `updater_of` its updater, `plan`
        says what it is going to do.

    Raises:
        TypeError: If `optimizer` is no optax transformation, or `algorithm` none of the three.
        ValueError: For an unknown name, a value that is not allowed, or `total_steps` missing where it is needed.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.adam(1e-3), "rigl", sparsity=0.75, distribution="uniform", total_steps=10_000)
        >>> print(core.plan(tx, {"w": jnp.ones((16, 16)), "b": jnp.ones(16)}))
        RigL: masks change 101 times, every 75 optimizer steps from optimizer step 0 to 7500
        layer  shape     read as    target sparsity  kept
        b      (16,)                dense            16 of 16
        w      (16, 16)  one layer  0.75             64 of 256
        prunable: 64 of 256 kept (sparsity 0.75)
        random masks and scores: drawn from rng_seed=0, the same at every init; give rng_seed=key for others

    Source: Lee et al., JaxPruner (2023); Evci et al., Rigging the Lottery (2020); Zhu and Gupta (2017).
    """
    updater = build_updater(
        algorithm,
        sparsity=sparsity,
        total_steps=total_steps,
        distribution=distribution,
        rules=rules,
        structure=structure,
        layers=layers,
        preset=preset,
        **settings,
    )
    return updater.wrap_optax(optimizer)


def start(optimizer: optax.GradientTransformation, params: PyTree, *, output_axis: int = -1) -> tuple[PyTree, Any]:
    """The parameters and the optimizer state to begin training with.

    An optimizer's `init` cannot change parameters, so that with it alone the first step is taken at dense ones.

    Args:
        optimizer: A sparse optimizer, such as `sparsify` gives, or a chain with one.
        params: Initial parameters, drawn for dense layers.
        output_axis: Axis of a kernel along which its outputs lie; -1 for Flax and Haiku, 0 for Equinox.

    Returns:
        The parameters on their first masks, rescaled if the updater's `rescale` says so, and `optimizer.init(params)`.
        It warns of what follows the sparse optimizer in a chain and undoes its masks.

    Raises:
        ValueError: If there is no updater in the optimizer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.adam(1e-3), "set", sparsity=0.75, total_steps=1_000)
        >>> params, state = core.start(tx, {"w": jax.random.normal(jax.random.key(0), (64, 64))})
        >>> int(jnp.count_nonzero(params["w"])), round(float(jnp.square(params["w"]).sum(axis=0).mean()))
        (1024, 65)
    """
    if undone := what_follows(optimizer):
        warnings.warn(undone, stacklevel=2)
    state = optimizer.init(params)
    return updater_of(optimizer).first_params(params, state, output_axis), state


def updater_of(optimizer: Any) -> BaseUpdater:
    """The updater behind a sparse optimizer, however deep it is in chains and wrappers.

    Args:
        optimizer: What `sparsify` or `wrap_optax` gave, or anything made of it: an optax transformation, a
            `fedjax.Optimizer`, an object with such parts.

    Returns:
        The updater.

    Raises:
        ValueError: If there is none, or more than one.

    Example:
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.adam(1e-3), "static_sparse", sparsity=0.9)
        >>> type(core.updater_of(optax.chain(optax.clip_by_global_norm(1.0), tx))).__name__
        'StaticRandomSparse'
    """
    found = {id(updater): updater for updater in _updaters(optimizer, set())}
    if len(found) != 1:
        raise ValueError(
            f"{len(found) or 'no'} updaters in this {type(optimizer).__name__}: give what core.sparsify or "
            "updater.wrap_optax returned, or something made of it alone."
        )
    return next(iter(found.values()))


def changed_afterwards(optimizer: Any) -> list[str]:
    """What changes the updates of a sparse optimizer again, as far as optax's own wrappers show it.

    Args:
        optimizer: As in `updater_of`.

    Returns:
        Names of transformations behind it in a chain, or around it.

    Example:
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.adam(1e-3), "static_sparse", sparsity=0.9)
        >>> changed_afterwards(optax.chain(optax.clip(1.0), tx)), changed_afterwards(optax.chain(tx, optax.ema(0.9)))
        ([], ['ema'])
    """
    found: list[str] = []
    for function in _functions(optimizer, set()):
        links = _variables(function).get("update_fns")
        if _name(function) == "chain" and isinstance(links, tuple):
            sparse = [any(_updaters(link, set())) for link in links]
            behind = links[sparse.index(True) + 1 :] if any(sparse) else ()
            found += [name for name in map(_name, behind) if name != "identity"]
        elif _name(function) in _CHANGE_PARAMETERS and any(_updaters(function, set())):
            found.append(_name(function))
    return list(dict.fromkeys(found))


def what_follows(optimizer: Any) -> str:
    """What is wrong with the place of a sparse optimizer, in words; nothing if it is the last link.

    Example:
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.adam(1e-3), "static_sparse", sparsity=0.9)
        >>> what_follows(optax.chain(tx, optax.ema(0.9)))
        'ema after the sparse optimizer moves weights off their masks: put the sparse optimizer last'
    """
    if not (names := ", ".join(changed_afterwards(optimizer))):
        return ""
    return f"{names} after the sparse optimizer moves weights off their masks: put the sparse optimizer last"


# Around an optimizer they train something else than what it lands on its masks.
_CHANGE_PARAMETERS = ("lookahead", "schedule_free")


def _name(function: Any) -> str:
    """'chain' for the update function that `optax.chain` made."""
    name = getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
    inner = getattr(_variables(function).get("tx"), "update", None)
    return _name(inner) if name == "with_extra_args_support" and inner is not None else name


def _variables(function: Any) -> dict[str, Any]:
    """What a function closes over, by name."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = getattr(function, "__closure__", None) or ()
    found = {}
    for name, cell in zip(names, cells, strict=True):
        with contextlib.suppress(ValueError):  # a variable that is not assigned yet
            found[name] = cell.cell_contents
    return found


def _functions(node: Any, seen: set[int]) -> Iterator[Any]:
    """All functions of an optimizer, outside of updaters."""
    if id(node) in seen or isinstance(node, BaseUpdater):
        return
    seen.add(id(node))
    if hasattr(node, "__closure__"):
        yield node
    for part in _parts(node):
        yield from _functions(part, seen)


def _updaters(node: Any, seen: set[int]) -> Iterator[BaseUpdater]:
    """All updaters that functions close over; what wraps an optimizer keeps it in a closure or as an attribute."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, BaseUpdater):
        yield node
        return
    if isinstance(said := getattr(node, "updater", None), BaseUpdater):
        yield said
        return
    for part in _parts(node):
        yield from _updaters(part, seen)


def _parts(node: Any) -> Sequence[Any]:
    if isinstance(node, (tuple, list)):
        return node
    if isinstance(node, Mapping):
        return list(node.values())
    if isinstance(node, functools.partial):
        return (node.func, *node.args, *node.keywords.values())
    if (bound := getattr(node, "__self__", None)) is not None:
        return [bound]
    if hasattr(node, "__closure__"):
        return [*_variables(node).values(), *vars(node).values()]
    is_optimizer = any(hasattr(node, name) for name in ("update", "apply", "tx", "optimizer"))
    return list(vars(node).values()) if is_optimizer and hasattr(node, "__dict__") else ()
