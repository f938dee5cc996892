"""A broadcast in the forms that nodes need: with masks, without those they hold, or as what changed of them."""

import dataclasses
import functools
from typing import Any, Literal

from sparse_plugins.fed.flower.records import Layout
from sparse_plugins.fed.messages import Wire
from sparse_plugins.wire import Binding, Decoded, SeededMasks, decode, encode, masks_digest
from sparse_plugins.wire.trees import PyTree

__all__ = ["Broadcast", "Held"]


Version = tuple[str, int]  # of masks: the layout of their arrays, and a digest of them


class Held:
    """Which masks nodes are known to hold: those of a broadcast that they answered.

    Args:
        is_used: Whether this is made use of; else masks are sent in every broadcast.
    """

    def __init__(self, is_used: bool = True) -> None:
        self._is_used = is_used
        self._versions: dict[int, Version] = {}
        self._masks: dict[Version, PyTree] = {}

    def add(self, node: int, broadcast: "Broadcast") -> None:
        """A node answered a broadcast."""
        if self._is_used:
            self._versions[node] = broadcast.version
            self._masks[broadcast.version] = broadcast.masks

    def forget(self, node: int) -> None:
        """A node lost its state."""
        self._versions.pop(node, None)

    def keep_newest(self, count: int = 2) -> None:
        """Forgets old masks of each layout: a node that was away for long gets whole ones."""
        layouts = {layout: [version for version in self._masks if version[0] == layout] for layout, _ in self._masks}
        for versions in layouts.values():
            for version in versions[:-count]:
                del self._masks[version]

    def masks(self, node: int) -> tuple[Version, PyTree] | None:
        """Version and masks that a node holds; None if that is not known."""
        version = self._versions.get(node)
        return None if version not in self._masks else (version, self._masks[version])


@dataclasses.dataclass(frozen=True)
class Broadcast:
    """What the server sends in a round.

    Attributes:
        run: Name of the run.
        round: Its number, from 0.
        params: Parameters, as NumPy arrays by name.
        masks: uint8 masks; `core.NOT_PRUNED` where an array stays dense.
        layout: Names, shapes and dtypes of the arrays.
        wire: Number formats.
        seed: What the masks were drawn from, if they were.
    """

    run: str
    round: int
    params: dict[str, Any]
    masks: dict[str, Any]
    layout: Layout
    wire: Wire = Wire()
    seed: SeededMasks | None = None
    _by_base: dict[int | None, bytes] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def digest(self) -> int:
        """Digest of the masks."""
        return masks_digest(self.masks, self.params)

    @functools.cached_property
    def version(self) -> Version:
        """What a node has to hold for masks not to be sent again."""
        return self.layout.to_text(), self.digest

    @property
    def binding(self) -> Binding:
        """What it belongs to."""
        return Binding("broadcast", self.run, self.round, masks=self.digest)

    def answer(self, what: Literal["update", "growth"], node: int) -> Binding:
        """What a node's answer belongs to."""
        return Binding(what, self.run, self.round, str(node), self.digest)

    def payload(self, held: tuple[Version, PyTree] | None = None) -> bytes:
        """The bytes for a node that holds some masks, or none that are known."""
        is_of_use = held is not None and held[0][0] == self.version[0]
        digest, base = (held[0][1], held[1]) if held is not None and is_of_use else (None, None)
        if digest not in self._by_base:
            # A message that builds on other masks states their digest, in place of that of its own.
            masks = self.digest if digest in (None, self.digest) else None
            binding = dataclasses.replace(self.binding, masks=masks)
            self._by_base[digest] = encode(
                self.masks,
                self.params,
                dtype=self.wire.down,
                base=base,
                seed=self.seed,
                zstd=self.wire.zstd,
                binding=binding,
            )
        return self._by_base[digest]

    @functools.cached_property
    def received(self) -> Decoded:
        """What clients decode, by which their updates are read."""
        return decode(self.payload(), self.params, binding=self.binding)
