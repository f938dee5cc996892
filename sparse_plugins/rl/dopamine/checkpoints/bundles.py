"""An agent's checkpoint as numbers, put back into what the agent has, and whether it belongs to that agent."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.identity import identity
from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.storage.array_files import DamagedFileError, StoredArray
from sparse_plugins.core.storage.values import fields, like_tree, refuse, stored_array, tree_values
from sparse_plugins.core.transform.state import find_sparse_state, holds_sparse_state
from sparse_plugins.core.trees import PyTree, leaf_names

__all__ = [
    "action",
    "bundle_like",
    "bundle_values",
    "channels_of",
    "check_bundle",
    "check_shrinks",
    "observed",
    "stored_channels",
]

_BETWEEN_STEPS = "between_steps"
_MOST_ENVIRONMENTS, _WIDEST = 1024, 1 << 16

_REMEDY = (
    "Give the run the settings it was started with, or start a new one in another --base_dir; nothing has been changed."
)


def check_bundle(bundle: dict[str, Any], updater: BaseUpdater, fresh_state: PyTree, agent: str) -> None:
    """Refuses a checkpoint whose masks do not fit this agent.

    Args:
        bundle: What `bundle_and_checkpoint` gave.
        updater: The agent's updater.
        fresh_state: The agent's fresh optimizer state.
        agent: Name of the agent, for the message.

    Raises:
        CheckpointMismatchError: If the checkpoint is dense, or has other masks, other target sparsities, another
            updater or another optimizer.
    """
    if not holds_sparse_state(bundle.get("optimizer_state")):
        raise CheckpointMismatchError(
            f"the checkpoint holds no masks, it was written by a dense agent, and {agent} uses "
            f"{type(updater).__name__}: its masks would be drawn anew. {_REMEDY}"
        )
    theirs, ours = find_sparse_state(bundle["optimizer_state"]), find_sparse_state(fresh_state)
    if _targets(theirs.target_sparsities) != _targets(ours.target_sparsities):
        raise CheckpointMismatchError(
            f"the checkpoint has target sparsities {_described(theirs.target_sparsities)}, and {agent} with "
            f"{type(updater).__name__} asks for {_described(ours.target_sparsities)}. {_REMEDY}"
        )
    if _layout(bundle["optimizer_state"]) != _layout(fresh_state):
        raise CheckpointMismatchError(
            f"the optimizer state in the checkpoint is laid out differently from that of {agent} with "
            f"{type(updater).__name__}: another optimizer, network, updater or way to store masks. {_REMEDY}"
        )
    if bundle.get("updater", wanted := identity(updater)) != wanted:
        raise CheckpointMismatchError(
            f"the checkpoint was written by an agent of {bundle['updater']}, and {agent} is one of {wanted}. {_REMEDY}"
        )


def channels_of(bundle: Mapping[str, Any], like: Mapping[str, np.ndarray], agent: str) -> dict[str, np.ndarray]:
    """By group bool[channels], those that are left in a checkpoint.

    Args:
        bundle: What `bundle_and_checkpoint` gave.
        like: The same of the agent.
        agent: Its name, for the message.

    Raises:
        CheckpointMismatchError: If the checkpoint is that of an agent that keeps its channels, or of another network.
    """
    found = bundle["channels"]
    sizes = lambda channels: {name: np.shape(left) for name, left in channels.items()}  # noqa: E731
    if sizes(found) != sizes(like):
        raise CheckpointMismatchError(
            f"the checkpoint has the groups of channels {sizes(found)}, and {agent} with shrink=True has "
            f"{sizes(like)}. {_REMEDY}"
        )
    return {name: np.asarray(left, bool) for name, left in found.items()}


def check_shrinks(bundle: Mapping[str, Any], shrinks: bool, agent: str) -> None:
    """Refuses a checkpoint written with another `shrink`.

    Args:
        bundle: What `bundle_and_checkpoint` gave.
        shrinks: Whether the agent loses the channels that are pruned.
        agent: Its name, for the message.

    Raises:
        CheckpointMismatchError: If so.
    """
    if ("channels" in bundle) != shrinks:
        raise CheckpointMismatchError(
            f"the checkpoint was written with shrink={not shrinks}, and {agent} has shrink={shrinks}: with shrink=True "
            f"masks are of whole channels. {_REMEDY}"
        )


def stored_channels(stored: Any, agent: Any) -> dict[str, np.ndarray] | None:
    """The same of what a file has; None of an agent that keeps its channels.

    Raises:
        CheckpointMismatchError: If one of the two has lost channels, or is going to, and the other has not.
        DamagedFileError: If they are not those of the agent's network.
    """
    if not isinstance(stored, dict):
        return None
    check_shrinks(stored, agent.shrinking is not None, type(agent).__name__)
    if agent.shrinking is None:
        return None
    found = like_tree(stored["channels"], agent.shrinking.channels, f"the {type(agent).__name__}'s channels")
    if not all(np.any(left) for left in found.values()):
        raise DamagedFileError("a group of channels has none left")
    return found


def bundle_values(bundle: dict[str, Any]) -> dict[str, Any]:
    """A bundle for `write_values`.

    Args:
        bundle: What `bundle_and_checkpoint` gave.
    """
    apart = ("state", "updater", _BETWEEN_STEPS)  # the settings of the folder say what the updater is
    values = {name: tree_values(part) for name, part in bundle.items() if name not in apart}
    between = {
        name: tree_values(part) if name in ("_rng", "_seed") else part for name, part in bundle[_BETWEEN_STEPS].items()
    }
    return values | {"state": bundle["state"], _BETWEEN_STEPS: between}


def bundle_like(stored: Any, now: dict[str, Any], agent: Any) -> dict[str, Any]:
    """What a file has, in the place of what the agent has now.

    Args:
        stored: What `bundle_values` gave, as read from a file.
        now: The agent's `bundle_now`, with the `stored_channels`.
        agent: The agent.

    Returns:
        A bundle of the same fields, trees, shapes and dtypes. Only what depends on the environments that are at work
        may have an axis of them in front.

    Raises:
        DamagedFileError: If that is not what the file has.
    """
    what = f"the {type(agent).__name__}"
    found = dict(zip(now, fields(stored, tuple(now), what), strict=True))
    names = tuple(now[_BETWEEN_STEPS])
    between = dict(zip(names, fields(found[_BETWEEN_STEPS], names, what), strict=True))
    bundle = {}
    for name, part in found.items():
        if name == "state":
            bundle[name] = observed(part, _state_shape(agent), f"{what}'s state")
        elif name != _BETWEEN_STEPS:
            bundle[name] = like_tree(part, now[name], f"{what}'s {name}")
    for name, part in between.items():
        place = f"{what}'s {name}"
        if name in ("_rng", "_seed"):
            between[name] = like_tree(part, now[_BETWEEN_STEPS][name], place)
        elif part is not None:
            between[name] = action(part, place) if name == "action" else observed(part, agent.observation_shape, place)
    try:
        check_bundle(bundle, agent.planned_updater, now["optimizer_state"], type(agent).__name__)
    except ValueError as error:
        raise DamagedFileError(str(error)) from error
    return bundle | {_BETWEEN_STEPS: between}


def observed(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """What is seen of an environment, or of several along a first axis.

    Raises:
        DamagedFileError: If it is an array of another shape, or none.
    """
    if not isinstance(value, StoredArray):
        refuse(what, value, f"an array {list(shape)}")
    axes = (None,) * (len(value.shape) > len(shape))
    return stored_array(value, "biuf", (*axes, *shape), what, _MOST_ENVIRONMENTS)


def action(value: Any, what: str) -> int | np.ndarray:
    """An action, or those of several environments.

    Raises:
        DamagedFileError: If it is no number, and no small array of them.
    """
    if type(value) is int and 0 <= value < _WIDEST:
        return value
    if not isinstance(value, StoredArray) or np.prod(value.shape, dtype=object) > _WIDEST:
        refuse(what, value, f"a number, or an array of at most {_WIDEST:,}")
    return stored_array(value, "biuf", value.shape, what)


def _state_shape(agent: Any) -> tuple[int, ...]:
    """Of one environment; agents for several know it by this name."""
    return tuple(getattr(agent, "state_shape", np.shape(agent.state)))


def _targets(tree: PyTree) -> dict[str, float]:
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: float(target) for name, target in leaves if is_pruned(target)}


def _described(tree: PyTree) -> str:
    targets = _targets(tree)
    if not targets:
        return "of no layer (a dense run)"
    return ", ".join(f"{name}: {target:.4g}" for name, target in targets.items())


def _layout(tree: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    return [(jax.tree_util.keystr(path), np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
