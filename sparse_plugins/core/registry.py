"""Algorithms by name: those of the package, and those that users register."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from sparse_plugins.core.algorithms import (
    alternating,
    at_init,
    fisher_and_wanda,
    global_pruning,
    gradual_regrowth,
    pruning,
    regrowth,
    straight_through,
)
from sparse_plugins.core.base_updater import BaseUpdater

__all__ = ["ALGORITHMS", "Algorithm", "all_algorithm_names", "known", "register_algorithm"]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What stands behind a name.

    Attributes:
        updater_class: The class of its updaters.
        defaults: Fields of the class that differ from the class's own defaults.
    """

    updater_class: type[BaseUpdater]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        """What the class can be built with."""
        return [field.name for field in dataclasses.fields(self.updater_class) if field.init]

    def default(self, name: str) -> Any:
        """What a field is where nothing is said."""
        return self.defaults.get(name, getattr(self.updater_class, name))


ALGORITHMS: dict[str, Algorithm] = {
    "no_prune": Algorithm(pruning.NoPruning),
    "magnitude": Algorithm(pruning.MagnitudePruning),
    "random": Algorithm(pruning.RandomPruning),
    "saliency": Algorithm(pruning.SaliencyPruning),
    "magnitude_ste": Algorithm(straight_through.SteMagnitudePruning),
    "random_ste": Algorithm(straight_through.SteRandomPruning),
    "global_magnitude": Algorithm(global_pruning.GlobalMagnitudePruning),
    "global_saliency": Algorithm(global_pruning.GlobalSaliencyPruning),
    "static_sparse": Algorithm(regrowth.StaticRandomSparse),
    "set": Algorithm(regrowth.SET),
    "rigl": Algorithm(regrowth.RigL),
    "srigl": Algorithm(regrowth.SRigL),
    "gradual_set": Algorithm(gradual_regrowth.GradualSET),
    "gradual_rigl": Algorithm(gradual_regrowth.GradualRigL),
    "granet": Algorithm(gradual_regrowth.GraNet),
    "acdc": Algorithm(alternating.ACDC),
    "fisher": Algorithm(fisher_and_wanda.FisherPruning),
    "wanda": Algorithm(fisher_and_wanda.WandaPruning),
    "snip": Algorithm(at_init.SnipPruning),
    "grasp": Algorithm(at_init.GraspPruning),
    "sr_ste": Algorithm(straight_through.SrSte),
    "soft_topk_ste": Algorithm(straight_through.SoftTopKSte),
}
_FROM_CONFIGURATION = ("sparsity", "sparsity_distribution_fn")


def all_algorithm_names() -> tuple[str, ...]:
    """Names that `create_updater_from_config` knows, registered ones last.

    Example:
        >>> "rigl" in all_algorithm_names()
        True
    """
    return tuple(ALGORITHMS)


def register_algorithm(name: str, updater_class: type[BaseUpdater], **defaults: Any) -> None:
    """Makes an algorithm of your own known by a name, in configurations of every front end.

    Args:
        name: What `algorithm` is in a configuration; one that is not taken.
        updater_class: A class that extends `BaseUpdater`.
        **defaults: Fields of the class, for updaters whose configuration says nothing about them. A
            `drop_fraction_fn` takes the place of the configuration's drop_fraction and drop_schedule.

    Raises:
        TypeError: If the class is no updater, or the name no text.
        ValueError: If the name is taken, or a default no field of the class or one that a configuration always gives.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_plugins import core
        >>> class SmallestFirst(core.BaseUpdater):
        ...     def calculate_scores(self, params, sparse_state=None, grads=None, **kwargs):
        ...         return jax.tree.map(lambda w: -jnp.abs(w), params)
        >>> core.register_algorithm("smallest_first", SmallestFirst, use_packed_masks=False)
        >>> updater = core.create_updater_from_config(algorithm="smallest_first", sparsity=0.5)
        >>> updater.instant_sparsify({"w": jnp.array([[1.0, 4.0]])})[0]["w"].tolist()
        [[1.0, 0.0]]
        >>> del ALGORITHMS["smallest_first"]
    """
    if not isinstance(updater_class, type) or not issubclass(updater_class, BaseUpdater):
        raise TypeError(f"{updater_class!r} is no updater class; give a class that extends core.BaseUpdater.")
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of an algorithm is {name!r}; give text such as 'movement'.")
    if name in ALGORITHMS:
        raise ValueError(
            f"algorithm {name!r} is taken, by {ALGORITHMS[name].updater_class.__name__}; choose another name."
        )
    algorithm = Algorithm(updater_class, defaults)
    for field in defaults:
        if field in _FROM_CONFIGURATION:
            raise ValueError(f"{field} comes from the configuration; register {name!r} without it.")
        if field not in algorithm.fields:
            raise ValueError(
                f"{updater_class.__name__} has no field {field!r}; it has {', '.join(algorithm.fields)}. Fields of its "
                "own need @dataclasses.dataclass(eq=False) above the class."
            )
    ALGORITHMS[name] = algorithm


def known(what: str, name: Any, allowed: Iterable[str]) -> Any:
    """The name, if it is allowed.

    Raises:
        ValueError: If it is not; the message calls it `what` and says which ones are, and which is near.

    Example:
        >>> known("color", "gren", ["red", "green"])
        Traceback (most recent call last):
        ValueError: color 'gren' is unknown; allowed are red, green. Did you mean 'green'?
    """
    if name in (allowed := list(allowed)):
        return name
    words = {_plain(word): word for word in allowed}
    plain = _plain(str(name))
    if _SHORT.get(plain) in allowed:
        near = [_SHORT[plain]]
    else:
        near = [words[word] for word in difflib.get_close_matches(plain, words, n=1)]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {name!r} is unknown; allowed are {', '.join(allowed)}.{hint}")


# What tables of papers call algorithms.
_SHORT = {"ste": "magnitude_ste", "global": "global_magnitude", "static": "static_sparse", "dense": "no_prune"}


def _plain(name: str) -> str:
    """A name without what people write differently: 'RigL' for 'rigl', 'static-sparse' for 'static_sparse'."""
    return name.lower().replace("-", "_").replace(" ", "_")
