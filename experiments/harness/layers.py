"""How sparse every layer is at an evaluation, and how much of its mask has changed since the one before."""

import base64
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_plugins import core
from sparse_plugins.core.masks import is_pruned
from sparse_plugins.core.trees import aligned, leaf_names


class Mask(NamedTuple):
    """The mask of a layer.

    Attributes:
        bits: uint8, eight entries each; 1 = kept. Padding is 0.
        size: Entries.
    """

    bits: np.ndarray[Any, Any]
    size: int

    @property
    def kept(self) -> int:
        """Entries that are kept. Counted in integers: the fractions of `core.summarize_sparsity` are float32."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))


Masks = Mapping[str, Mask]


def masks_of(params: Any, optimizer: Any, layers: core.Layers | None = None) -> dict[str, Mask]:
    """Masks of a run by the path of their layer; layers that are never pruned are left out.

    Args:
        params: Parameters in use.
        optimizer: Optimizer state that holds the sparse state.
        layers: What axes are, if the updater knows it: layers of a stack are then listed one by one.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"blocks": jnp.ones((2, 4, 4))}
        >>> layers = core.describe_layers(params, [("blocks", core.Axes(stack=0, inputs=1, outputs=2))])
        >>> updater = core.build_updater("static_sparse", sparsity=0.75, layers=layers)
        >>> {name: mask.kept for name, mask in masks_of(params, updater.init_state(params), layers).items()}
        {'blocks/0': 4, 'blocks/1': 4}
    """
    masks = core.find_sparse_state(optimizer).masks
    if layers is None:
        return _named(params, core.pack_masks(params, masks), lambda leaf: leaf.size)
    unpacked = aligned(params, core.unpack_masks(params, masks), "masks")
    stacks = [
        axes.as_stored.named(name, mask)
        for name, axes, mask in zip(leaf_names(params), layers.of(params), unpacked, strict=True)
        if is_pruned(mask)
    ]
    return {name: Mask(np.packbits(mask), mask.size) for stack in stacks for name, mask in stack}


def masks_of_seeds(params: Any, optimizer: Any) -> list[dict[str, Mask]]:
    """The same of several runs in one state, whose leaves have a leading axis of seeds."""
    packed = _pack_seeds(params, core.find_sparse_state(optimizer).masks)
    together = _named(params, packed, lambda leaf: leaf.size // leaf.shape[0])
    seeds = jax.tree.leaves(params)[0].shape[0]
    return [{name: Mask(mask.bits[i], mask.size) for name, mask in together.items()} for i in range(seeds)]


@jax.jit
def _pack_seeds(params: Any, masks: Any) -> Any:
    return jax.vmap(core.pack_masks)(params, masks)


def _named(params: Any, packed: Any, size: Any) -> dict[str, Mask]:
    nodes = zip(leaf_names(params), jax.tree.leaves(params), aligned(params, packed, "masks"), strict=True)
    return {name: Mask(np.asarray(mask), size(leaf)) for name, leaf, mask in nodes if is_pruned(mask)}


def lines(masks: Masks, before: Masks | None) -> Iterator[dict[str, Any]]:
    """Lines of `layers.csv`, a layer each.

    Args:
        masks: Masks at an evaluation.
        before: Masks at the evaluation before; None if there is none.

    Yields:
        `layer`, its path; `size`, its entries; `kept`, those in its mask; `changed`, those that were kept and are not,
        or the other way round; None if there is nothing to compare with.

    Example:
        >>> old, new = (Mask(np.array([bits], np.uint8), 8) for bits in (0b0011, 0b0110))
        >>> list(lines({"w": new}, {"w": old}))
        [{'layer': 'w', 'size': 8, 'kept': 2, 'changed': 2}]
    """
    for name, mask in masks.items():
        changed = None if before is None else int(np.bitwise_count(mask.bits ^ before[name].bits).sum(dtype=np.int64))
        yield {"layer": name, "size": mask.size, "kept": mask.kept, "changed": changed}


def to_json(masks: Masks | None) -> Any:
    """Masks for a checkpoint that takes JSON; `from_json` reads them."""
    if masks is None:
        return None
    text = lambda bits: base64.b64encode(np.ascontiguousarray(bits).tobytes()).decode()  # noqa: E731
    return {name: [mask.size, list(mask.bits.shape), text(mask.bits)] for name, mask in masks.items()}


def from_json(stored: Any) -> dict[str, Mask] | None:
    """Masks as `to_json` wrote them.

    Example:
        >>> from_json(to_json({"w": Mask(np.array([5], np.uint8), 3)}))
        {'w': Mask(bits=array([5], dtype=uint8), size=3)}
    """
    if stored is None:
        return None
    read = functools.partial(np.frombuffer, dtype=np.uint8)
    return {
        name: Mask(read(base64.b64decode(text)).reshape(shape), size) for name, (size, shape, text) in stored.items()
    }
