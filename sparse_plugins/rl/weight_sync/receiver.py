"""The actor's end: weights that are whole and of a known version at any time."""

from typing import Any

from sparse_plugins import wire
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.weight_sync.channels import REPLY_SIZE, Channel, Reply, Request
from sparse_plugins.wire.reader import Buffer

__all__ = ["StaleWeightsError", "WeightReceiver"]

_MOST_PAYLOADS = 1 << 16


class StaleWeightsError(wire.CodecError):
    """A payload is a duplicate, older than the weights at hand, or one before it is missing."""


class WeightReceiver:
    """Keeps a copy of the learner's weights.

    `weights` is another tree after each update and is never written to, so an actor may hold on to one. What is
    damaged, forged, of another model, out of order or built on other weights is refused, and the weights stay as they
    were.

    Args:
        like: A tree of the model: arrays or `jax.ShapeDtypeStruct` leaves; only paths, shapes and dtypes are read.
        channel: To a `WeightSender`, or a `WeightFolder`; None if payloads come by other ways, through `take`.
        threads: See `wire.apply`.

    Attributes:
        weights: The newest weights, NumPy arrays; None before the first.
        version: Their version; None before the first.
        newest: The newest version that the sender had when it last replied; None before.
        refused: Payloads that were refused.

    Example:
        >>> import numpy as np
        >>> first, second = {"w": np.zeros(3, np.float32)}, {"w": np.ones(3, np.float32)}
        >>> receiver = WeightReceiver(first)
        >>> receiver.take(wire.delta(first, version=1))
        >>> payload = wire.delta(second, first, version=2, base_version=1)
        >>> receiver.take(payload)
        >>> receiver.version, receiver.weights["w"].tolist()
        (2, [1.0, 1.0, 1.0])
        >>> receiver.take(payload)
        Traceback (most recent call last):
        sparse_plugins.rl.weight_sync.receiver.StaleWeightsError: version 2 came, and version 2 is here already: ...
    """

    def __init__(self, like: PyTree, channel: Channel | None = None, *, threads: int = 1) -> None:
        self.weights: PyTree = None
        self.version: int | None = None
        self.newest: int | None = None
        self.refused = 0
        self._like, self._most = like, wire.most_delta_bytes(like)
        self._channel, self._threads = channel, threads
        self._digest, self._is_waiting = bytes(16), False

    def update(self, timeout: float | None = None) -> bool:
        """Asks for what is new, and takes it when it is there.

        With `timeout=0` it never waits: it asks, and a later call takes the answer. If a payload is refused, a snapshot
        is asked for instead, once, for which it waits as long.

        Args:
            timeout: Seconds to wait for the answer; None waits for ever.

        Returns:
            Whether the weights are newer than before.

        Raises:
            CodecError: If the snapshot was refused, too.
            EOFError: If the sender has hung up.
            ValueError: If there is no channel.
        """
        if self._channel is None:
            raise ValueError("this receiver has no channel to ask: give it one, or pass payloads to `take`.")
        before = self.version
        try:
            self._ask_and_take(self._channel, timeout, self.version)
        except wire.CodecError:
            self._ask_and_take(self._channel, timeout, None)
        return self.version != before

    def take(self, payload: Buffer) -> None:
        """Takes one payload, wherever it comes from.

        Args:
            payload: What `wire.delta` returned, with version and base version.

        Raises:
            StaleWeightsError: If it is a duplicate or older than what is here, or a delta before it is missing.
            BaseMismatchError: If it builds on other weights of the same version.
            CodecError: If it is damaged, forged or about another model.
        """
        try:
            header = wire.read_delta_header(payload)
            self._check_order(header)
            base = self._like if header.base_version is None else self.weights
            weights = wire.apply(payload, base, threads=self._threads)
        except wire.CodecError:
            self.refused += 1
            raise
        self.weights, self.version, self._digest = weights, header.version, header.digest

    def _check_order(self, header: wire.DeltaHeader) -> None:
        if self.version is not None and header.version <= self.version:
            raise StaleWeightsError(
                f"version {header.version} came, and version {self.version} is here already: a duplicate, or out of "
                "order."
            )
        if header.base_version is None:
            return
        if header.base_version != self.version:
            have = "there are none yet" if self.version is None else f"version {self.version} is here"
            raise StaleWeightsError(
                f"version {header.version} builds on version {header.base_version}, and {have}: a delta was lost. Ask "
                "for it again, or for a snapshot."
            )
        if header.base_digest != self._digest:
            raise wire.BaseMismatchError(
                f"version {header.version} builds on other weights than the version {self.version} that is here: they "
                "are of two learners, or of two runs of one. Ask for a snapshot."
            )

    def _ask_and_take(self, channel: Channel, timeout: float | None, version: int | None) -> None:
        if not self._is_waiting:
            channel.send_bytes(Request(version, self._digest).packed())
            self._is_waiting = True
        if not channel.poll(timeout):
            return
        self._is_waiting = False
        reply = Reply.read(channel.recv_bytes(REPLY_SIZE))
        if reply.payloads > _MOST_PAYLOADS:
            raise wire.CodecError(f"a reply announces {reply.payloads} payloads, and {_MOST_PAYLOADS} are the most.")
        refusal: Any = None
        for _ in range(reply.payloads):
            payload = channel.recv_bytes(self._most)
            if refusal is None:  # the others are read all the same, or the next reply would begin with them
                try:
                    self.take(payload)
                except wire.CodecError as error:
                    refusal = error
        if refusal is not None:
            raise refusal
        self.newest = reply.version
