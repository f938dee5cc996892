"""A parameter tree dealt out to several updaters, and put together again."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.path_rules import first_match
from sparse_plugins.core.transform.state import SparseState
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["Parts", "check_keys"]


def check_keys(state: SparseState, rules: int) -> None:
    """Raises ValueError if a state was not made by a `PerModule` of so many rules."""
    if not isinstance(state.rng, (tuple, list)) or len(state.rng) != rules:
        raise ValueError(
            f"the state was not made by this PerModule: its rng should hold one key for each of the {rules} rules. "
            "Restore a checkpoint of the same rules, or start from init."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """Which leaves of a parameter tree each updater looks after.

    A part is an ordered dict from paths to leaves, so that names, and the order in which ties are decided, stay.

    Attributes:
        updaters: One per pattern, and a last one for the leaves that no pattern matches.
        params: The parameter tree, or any tree laid out like it.
        patterns: Regular expressions for whole paths; the first match wins.

    Raises:
        ValueError: When leaves are dealt out: if a pattern decides about no leaf, or two leaves have the same path.

    Example:
        >>> from sparse_plugins import core
        >>> params = {"actor": {"w": 1, "b": 2}, "critic": {"w": 3}}
        >>> parts = Parts((core.RigL(), core.NoPruning()), params, ["actor/.*"])
        >>> [dict(part) for part in parts.cut(params)]
        [{'actor/b': 2, 'actor/w': 1}, {'critic/w': 3}]
        >>> parts.join(parts.cut(params)) == params
        True
    """

    updaters: Sequence[BaseUpdater]
    params: PyTree
    patterns: Sequence[str]

    @functools.cached_property
    def names(self) -> list[str]:
        """The path of every leaf."""
        names = leaf_names(self.params)
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"two parameters have the path {twice!r}, so rules cannot tell them apart: rename one.")
        return names

    @functools.cached_property
    def owners(self) -> list[int]:
        """For every leaf the index of its updater."""
        rest = len(self.patterns)
        return [rest if rule is None else rule for rule in first_match(self.patterns, self.names)]

    def joined(self, method: Callable[[BaseUpdater], Callable], /, *trees: PyTree, **extra: Any) -> PyTree:
        """The tree of what each updater makes of its part."""
        return self.join(self.each(method, *trees, **extra))

    def each(self, method: Callable[[BaseUpdater], Callable], /, *trees: PyTree, **extra: Any) -> list[Any]:
        """What a method of each updater returns for its part of the trees."""
        columns = zip(self.updaters, self._cut_within(extra), *map(self.cut, trees), strict=True)
        return [method(updater)(*parts, **part_extra) for updater, part_extra, *parts in columns]

    def cut(self, tree: PyTree) -> list[Any]:
        """The part of each updater, of a tree laid out like the parameters or of a state."""
        if tree is None:
            return [None for _ in self.updaters]
        if isinstance(tree, SparseState):
            return self._cut_state(tree)
        parts: list[OrderedDict[str, Any]] = [OrderedDict() for _ in self.updaters]
        nodes = aligned(self.params, tree, "the other tree")
        for owner, name, node in zip(self.owners, self.names, nodes, strict=True):
            parts[owner][name] = node
        return parts

    def join(self, parts: Sequence[PyTree]) -> PyTree:
        """The tree of which these are the parts."""
        nodes = [
            iter(aligned(params, part, "a part")) for params, part in zip(self.cut(self.params), parts, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(self.params), [next(nodes[owner]) for owner in self.owners])

    def _cut_state(self, state: SparseState) -> list[SparseState]:
        check_keys(state, len(self.patterns))
        dense = [()] * len(self.updaters) if state.dense_params == () else self.cut(state.dense_params)
        columns = (self.cut(state.masks), self._cut_within(state.inner_state), self.cut(state.target_sparsities))
        return [
            SparseState(masks, inner_state, targets, state.count, rng, part_dense)
            for masks, inner_state, targets, rng, part_dense in zip(*columns, (*state.rng, ()), dense, strict=True)
        ]

    def _cut_within(self, tree: PyTree) -> list[PyTree]:
        """A tree for each updater in which all that is laid out like the parameters is cut to its part."""
        stands_in = lambda node: node is None or isinstance(node, optax.MaskedNode)  # noqa: E731
        layout = jax.tree.structure(self.params, is_leaf=stands_in)
        laid_out = lambda node: jax.tree.structure(node, is_leaf=stands_in) == layout  # noqa: E731
        if jax.tree_util.all_leaves([self.params]):  # any leaf is laid out like that
            return [tree for _ in self.updaters]
        nodes, treedef = jax.tree.flatten(tree, is_leaf=laid_out)
        cut = [self.cut(node) if laid_out(node) else [node for _ in self.updaters] for node in nodes]
        return [treedef.unflatten([parts[i] for parts in cut]) for i in range(len(self.updaters))]
