"""What each axis of each parameter is to the layer it belongs to: read from how the program uses it."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from sparse_plugins.core.layers.axes import LayerAxes, Layers, Part
from sparse_plugins.core.layers.factors import Axis, Factor, factors, root, unify
from sparse_plugins.core.layers.jaxpr_walk import Value, walk
from sparse_plugins.core.layers.joined_axes import Joined, join
from sparse_plugins.core.layers.primitives import Flow
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = ["trace_layers", "traced_program"]


def trace_layers(apply: Callable[..., Any], params: PyTree, *inputs: Any) -> Layers:
    """What every axis of every parameter is, read from the computation itself.

    Any function of parameters and inputs will do, of any framework. It is traced, not run, so that arrays may be given
    as `jax.ShapeDtypeStruct`.

    Args:
        apply: `(params, *inputs)` to outputs.
        params: Parameter tree.
        *inputs: Trees of inputs of the shapes that the function takes.

    Returns:
        A mapping from each parameter's path to its `LayerAxes`.

    Raises:
        TypeError: If the function cannot be called with these arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"blocks": {"kernel": jnp.ones((6, 4, 4)), "bias": jnp.ones((6, 4))}}
        >>> def apply(params, x):
        ...     block = lambda x, p: (jax.nn.relu(x @ p["kernel"] + p["bias"][None]), None)
        ...     return jax.lax.scan(block, x, params["blocks"])[0]
        >>> print(trace_layers(apply, params, jnp.ones((2, 4))))
        blocks/bias    (6, 4)     stack 6, elementwise 4
        blocks/kernel  (6, 4, 4)  stack 6, inputs 4, outputs 4
    """
    program, _ = traced_program(apply, params, inputs)
    leaves, names = jax.tree.leaves(params), leaf_names(params)

    def values() -> list[Value]:
        variables = program.jaxpr.invars
        made = [[[Factor(size)] for size in variable.aval.shape] for variable in variables]
        return [Value(axes, place >= len(leaves)) for place, axes in enumerate(made)]

    uses, joined = _Uses(), Joined()
    seen, everywhere = values(), values()
    walk(uses, program, seen)
    walk(joined, program, everywhere)
    for mine, its in zip(seen, everywhere, strict=True):
        for axis, other in zip(mine.axes, its.axes, strict=True):
            unify(axis, [Factor(factor.size) for factor in factors(other)])
            unify(other, [Factor(factor.size) for factor in factors(axis)])
    roles = uses.settled()
    read = {variable for equation in program.jaxpr.eqns for variable in equation.invars if isinstance(variable, Var)}
    read |= {variable for variable in program.jaxpr.outvars if isinstance(variable, Var)}
    found = [
        _layer(name, jnp.shape(leaf), value, roles, uses.notes, variable in read)
        for name, leaf, value, variable in zip(names, leaves, seen, program.jaxpr.invars, strict=False)
    ]
    return Layers(zip(names, _with_context(found, everywhere), strict=True))


def traced_program(apply: Callable[..., Any], params: PyTree, inputs: Sequence[Any]) -> tuple[Any, PyTree]:
    """The closed jaxpr of a function of parameters and inputs, and shapes and dtypes of what it returns.

    Raises:
        TypeError: If it cannot be called with these arguments.
    """
    try:
        program, shapes = jax.make_jaxpr(apply, return_shape=True)(params, *inputs)
    except Exception as error:  # of JAX or of a framework, each with classes of its own
        raise TypeError(
            f"the function cannot be traced with these parameters and inputs: {error}. Give a function "
            "(params, *inputs) -> outputs: one that takes keys, or reads or writes collections besides, is wrapped, as "
            "in lambda params, x: model.apply({'params': params, **rest}, x, rngs={'dropout': key}, "
            "mutable=['batch_stats'])[0]. Branches by values are lax.cond."
        ) from error
    return program, shapes


class _Mark(NamedTuple):
    use: int | None  # None: whatever the use
    axis: Axis
    role: str


class _Uses:
    """Writes down how weights meet activations; among themselves weights only pass their axes on."""

    def __init__(self) -> None:
        self.marks: list[_Mark] = []
        self.links: list[tuple[Axis, Axis]] = []
        self.notes: list[tuple[Axis, str]] = []
        self._count = 0

    def equation(self, equation: Any, flow: Flow | None, operands: list[Value], results: list[Value]) -> None:
        crosses = any(result.is_activation for result in results)
        weights = [place for place, operand in enumerate(operands) if not operand.is_activation and operand.axes]
        if flow is None:
            note = f"used by the primitive {equation.primitive.name!r}, which is not followed"
            self.notes += [(axis, note) for place in weights for axis in operands[place].axes]
        elif crosses:
            for place in weights:
                self._meet(flow, place, operands[place], equation.primitive.name)
        else:
            named = join(flow, (*operands, *results), (*flow.operands, *flow.results))
            for part, whole in flow.parts:
                if flow.sizes[part] == 1:
                    self.marks.append(_Mark(None, [named[whole]], "stack"))
                else:
                    self.links.append(([named[part]], [named[whole]]))

    def _meet(self, flow: Flow, place: int, weight: Value, primitive: str) -> None:
        self._count += 1
        named = join(flow, [weight], [flow.operands[place]])
        mine = {symbol for axis in flow.operands[place] for symbol in axis}
        others = {s for i, axes in enumerate(flow.operands) if i != place for axis in axes for s in axis}
        after = {symbol for axes in flow.results for axis in axes for symbol in axis}
        for symbol in mine:
            role = _role(flow, symbol, symbol in others, symbol in after, primitive)
            self.marks.append(_Mark(self._count, [named[symbol]], role))

    def same(self, value: Value, other: Value) -> None:
        weights = [operand for operand in (value, other) if not operand.is_activation]
        if len(weights) == 2:
            for axis, other_axis in zip(value.axes, other.axes, strict=True):
                unify(axis, other_axis)
        elif weights and weights[0].axes:
            self._count += 1
            self.marks += [_Mark(self._count, axis, "elementwise") for axis in weights[0].axes]

    def looped(self, value: Value) -> None:
        if not value.is_activation:
            self.marks.append(_Mark(None, value.axes[0], "stack"))

    def constant(self, value: Value, dtype: Any) -> None:
        """Constants are weights that no parameter is made of."""

    def settled(self) -> dict[Factor, dict[int | None, str]]:
        """Roles by factor and use, handed on between arrays and their parts."""
        roles: dict[Factor, dict[int | None, str]] = {}
        for use, axis, role in self.marks:
            for factor in factors(axis):
                roles.setdefault(factor, {}).setdefault(use, role)
        pairs = [(factors(part), factors(whole)) for part, whole in self.links]
        has_changed = True
        while has_changed:
            changes = [_hand_on(roles, *pair) + _hand_on(roles, *pair[::-1]) for pair in pairs]
            has_changed = any(changes)
        return roles


def _hand_on(roles: dict[Factor, dict[int | None, str]], source: Axis, target: Axis) -> int:
    """Gives factors the roles of others where they have none; returns how many it gave."""
    given = 0
    uses = {use for factor in source for use in roles.get(factor, {})}
    for use in uses:
        its = {roles[factor][use] for factor in source if use in roles.get(factor, {})}
        for factor in target:
            if len(its) == 1 and use not in roles.setdefault(factor, {}):
                roles[factor][use] = next(iter(its))
                given += 1
    return given


def _role(flow: Flow, symbol: int, is_shared: bool, is_kept: bool, primitive: str) -> str:
    if not flow.is_product:
        if flow.indexed:
            return "rows" if symbol in flow.indexed else "outputs"
        return "elementwise"
    if symbol in flow.window:
        return "space"
    if is_shared and is_kept:
        return "groups" if primitive == "conv_general_dilated" else "stack"
    return "inputs" if is_shared else "outputs"


def _layer(
    name: str,
    shape: tuple[int, ...],
    value: Value,
    roles: dict[Factor, dict[int | None, str]],
    notes: list[tuple[Axis, str]],
    is_read: bool,
) -> LayerAxes:
    axes = [factors(axis) for axis in value.axes]
    every = [factor for axis in axes for factor in axis]
    uses = sorted({use for factor in every for use in roles.get(factor, {}) if use is not None})
    variants = list(dict.fromkeys(_parts(axes, roles, use) for use in uses))
    found = [LayerAxes(name, shape, parts) for parts in variants]
    layers = [parts for parts, its in zip(variants, found, strict=True) if its.is_layer]
    chosen = layers or [parts for parts, its in zip(variants, found, strict=True) if not its.size("outputs") > 1]
    chosen = chosen or variants
    mine = set(map(id, every))
    note = next((text for axis, text in notes if not mine.isdisjoint(map(id, factors(axis)))), "")
    if not chosen:
        return LayerAxes(name, shape, _parts(axes, roles, None), note=note if is_read else "not used by the function")
    layer = LayerAxes(name, shape, chosen[0], tuple(layers[1:]), note)
    if layer.is_known or note:
        return layer
    return dataclasses.replace(layer, note="not followed, because no input meets all of its axes")


def _parts(
    axes: list[Axis], roles: dict[Factor, dict[int | None, str]], use: int | None
) -> tuple[tuple[Part, ...], ...]:
    named = [_filled([_role_in_use(roles.get(factor, {}), use) for factor in axis]) for axis in axes]
    has_outputs = any("outputs" in its for its in named)
    grouped = [place for place, its in enumerate(named) if "groups" in its]

    def settled(place: int, role: str | None) -> Any:
        if role != "groups":
            return role
        # The groups of a grouped convolution are outputs; those that stand for a batch of convolutions are a stack.
        return "outputs" if "outputs" in named[place] or (not has_outputs and place == grouped[-1]) else "stack"

    return tuple(
        tuple(Part(factor.size, settled(place, role)) for factor, role in zip(axis, its, strict=True))
        or (Part(1, None),)
        for place, (axis, its) in enumerate(zip(axes, named, strict=True))
    )


def _filled(axis: list[str | None]) -> list[str | None]:
    """A factor that only tells the parts of an axis apart is what these are."""
    known = {role for role in axis if role}
    return [role or next(iter(known)) for role in axis] if len(known) == 1 else axis


def _role_in_use(roles: dict[int | None, str], use: int | None) -> str | None:
    return roles.get(None) or roles.get(use)


def _with_context(found: list[LayerAxes], everywhere: Sequence[Value]) -> Iterator[LayerAxes]:
    """Heads, and the stacks of layers that share their input: what only the rest of the program tells."""
    spread = [[[root(f) for f in factors(axis)] for axis in value.axes] for value in everywhere[: len(found)]]
    roles: dict[Factor, set[str | None]] = {}
    for layer, its in zip(found, spread, strict=True):
        for axis, parts in zip(its, layer.axes, strict=True):
            for factor, part in zip(axis, parts, strict=False):
                roles.setdefault(factor, set()).add(part.role)
    stacks = {factor for factor, its in roles.items() if "stack" in its and its.isdisjoint(("inputs", "space", "rows"))}
    for layer, its in zip(found, spread, strict=True):
        yield dataclasses.replace(layer, axes=_in_context(layer, its, stacks))


def _in_context(layer: LayerAxes, its: list[list[Factor]], stacks: set[Factor]) -> tuple[tuple[Part, ...], ...]:
    stacked = [[factor in stacks for factor in axis] for axis in its]
    rest = [
        part.role
        for axis, flags in zip(layer.axes, stacked, strict=True)
        for part, flag in zip(axis, flags, strict=False)
        if not flag
    ]
    may_stack = bool(rest) and ("outputs" in rest if layer.is_layer else True)

    def seen(part: Part, factor: Factor) -> Part:
        if part.role in ("outputs", "elementwise") and factor in stacks and may_stack:
            return part._replace(role="stack")
        return part._replace(is_heads=factor.is_batched and part.role in ("inputs", "outputs"))

    return tuple(
        _merged([seen(part, factor) for part, factor in zip(parts, axis, strict=True)]) if axis else parts
        for parts, axis in zip(layer.axes, its, strict=True)
    )


def _merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbours that are alike as one part."""
    merged = [
        Part(math.prod(part.size for part in alike), *key)
        for key, alike in itertools.groupby(parts, key=lambda part: (part.role, part.is_heads))
    ]
    return tuple(merged)
