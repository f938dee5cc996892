"""The learner's end: every version once as a delta, and for each receiver what it needs."""

import contextlib
import dataclasses
import threading
from collections import deque

import numpy as np

from sparse_plugins import wire
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.weight_sync.channels import REQUEST_SIZE, Channel, Reply, Request
from sparse_plugins.rl.weight_sync.folder import WeightFolder
from sparse_plugins.rl.weight_sync.history import Published, deltas_since, is_known
from sparse_plugins.wire.leaves import described_leaves, on_host
from sparse_plugins.wire.trees import named_leaves, with_leaves

__all__ = ["Traffic", "WeightSender"]


@dataclasses.dataclass
class Traffic:
    """What a sender has sent.

    Attributes:
        deltas: Payloads that were deltas.
        delta_bytes: Their bytes.
        snapshots: Payloads that were snapshots.
        snapshot_bytes: Their bytes.
        requests: Requests that were answered, those of receivers that had the newest weights too.
    """

    deltas: int = 0
    delta_bytes: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0
    requests: int = 0


class WeightSender:
    """Publishes weights, and answers receivers with the deltas since theirs or with a snapshot.

    It copies the weights, so that the learner may donate or overwrite its own. A receiver that joins late, lost
    something or fell so far behind that the deltas are gone or longer than a snapshot gets a snapshot. All methods may
    be called from several threads.

    Args:
        history: Deltas that are kept for receivers that fall behind.
        folder: Also write every version there, for receivers that read files.
        zstd: See `wire.delta`.
        threads: See `wire.delta`.

    Attributes:
        traffic: What was sent to receivers, in the end all of them together.

    Raises:
        ValueError: If history is negative.

    Example:
        >>> from multiprocessing import Pipe
        >>> from sparse_plugins.rl import WeightReceiver
        >>> sender, (left, right) = WeightSender(), Pipe()
        >>> params = {"w": np.zeros(1000, np.float32)}
        >>> sender.publish(params, version=10)
        10
        >>> receiver = WeightReceiver(params, right)
        >>> receiver.update(timeout=0), sender.answer(left), receiver.update(timeout=1)
        (False, True, True)
        >>> params["w"][7] = 1.5
        >>> sender.publish(params)
        11
        >>> receiver.update(timeout=0), sender.answer(left), receiver.update(timeout=1)
        (False, True, True)
        >>> receiver.version, receiver.weights["w"][7], sender.traffic.deltas, sender.traffic.delta_bytes < 120
        (11, np.float32(1.5), 1, True)
    """

    def __init__(
        self, *, history: int = 64, folder: WeightFolder | None = None, zstd: bool = False, threads: int = 1
    ) -> None:
        if history < 0:
            raise ValueError(f"history is {history}; give the number of deltas to keep, 0 or more.")
        self.traffic = Traffic()
        self._deltas: deque[Published] = deque(maxlen=history)
        self._folder, self._options = folder, {"zstd": zstd, "threads": threads}
        self._lock, self._is_published = threading.Lock(), threading.Event()
        self._weights: PyTree = None
        self._version: int | None = None
        self._digest, self._snapshot, self._most = b"", b"", 0

    @property
    def version(self) -> int | None:
        """The newest version; None before the first."""
        return self._version

    def publish(self, weights: PyTree, version: int | None = None) -> int:
        """Makes weights the newest version.

        Args:
            weights: Arrays of numbers, of the same tree, shapes and dtypes each time; masks may be leaves of it.
            version: A number above the last; by default the next, 0 at first.

        Returns:
            The version.

        Raises:
            ValueError: If the version does not rise, or the weights are of another model than those before.
        """
        with self._lock:
            last = self._version
            if version is None:
                version = 0 if last is None else last + 1
            if last is not None and version <= last:
                raise ValueError(f"version {version} does not rise above {last}, which receivers have already.")
            if last is None:
                self._weights = self._copied(weights)
                self._most = sum(leaf.nbytes for _, leaf in named_leaves(self._weights))
                self._digest = wire.weights_digest(self._weights)
            else:
                self._digest = self._publish_delta(weights, version, last)
            self._version = version
            if self._folder is not None and self._folder.is_snapshot_due(version):
                self._folder.write(self._fresh_snapshot(version))
            self._is_published.set()
            return version

    def answer(self, channel: Channel) -> bool:
        """Answers one request, if one is there.

        Args:
            channel: A receiver's.

        Returns:
            Whether there was one. Before anything is published it waits in the channel.

        Raises:
            CodecError: If what came is no request.
            EOFError: If the receiver has hung up.
        """
        if self._version is None or not channel.poll(0):
            return False
        request = Request.read(channel.recv_bytes(REQUEST_SIZE))
        version, payloads = self._payloads_for(request)
        channel.send_bytes(Reply(len(payloads), version).packed())
        for payload in payloads:
            channel.send_bytes(payload)
        return True

    def serve(self, channel: Channel) -> None:
        """Answers a receiver until it hangs up; meant for a thread of its own."""
        self._is_published.wait()
        with contextlib.suppress(EOFError, ConnectionError):
            while channel.poll(None):
                self.answer(channel)

    def _publish_delta(self, weights: PyTree, version: int, last: int) -> bytes:
        payload = wire.delta(
            weights,
            self._weights,
            version=version,
            base_version=last,
            base_digest=self._digest,
            **self._options,  # type: ignore[arg-type]
        )
        if self._folder is not None:
            self._folder.write(payload)
        header = wire.read_delta_header(payload)
        self._deltas.append(Published(header, payload))
        for (_, old), (name, value) in zip(named_leaves(self._weights), named_leaves(weights), strict=True):
            old[...] = on_host(value, name)
        self._snapshot = b""
        return header.digest

    def _payloads_for(self, request: Request) -> tuple[int, list[bytes]]:
        with self._lock:
            version = self._version or 0
            self.traffic.requests += 1
            if is_known(request, version, self._digest):
                return version, []
            chain = deltas_since(request, list(self._deltas), len(self._snapshot) or self._most)
            if chain is None:
                snapshot = self._snapshot or self._fresh_snapshot(version)
                self.traffic.snapshots += 1
                self.traffic.snapshot_bytes += len(snapshot)
                return version, [snapshot]
            self.traffic.deltas += len(chain)
            self.traffic.delta_bytes += sum(len(delta.payload) for delta in chain)
            return version, [delta.payload for delta in chain]

    def _fresh_snapshot(self, version: int) -> bytes:
        self._snapshot = wire.delta(self._weights, version=version, **self._options)  # type: ignore[arg-type]
        return self._snapshot

    def _copied(self, weights: PyTree) -> PyTree:
        leaves = described_leaves(weights)
        arrays = (on_host(value, leaf.name) for leaf, (_, value) in zip(leaves, named_leaves(weights), strict=True))
        copies = [np.array(array, leaf.dtype, order="C") for array, leaf in zip(arrays, leaves, strict=True)]
        return with_leaves(weights, copies)
