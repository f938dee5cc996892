"""A folder as the pipe: every version is a file, so that receivers may come, go and read at any time.

In `/dev/shm`, where a system has it, the folder is shared memory.
"""

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from sparse_plugins.rl.weight_sync.channels import Reply, Request
from sparse_plugins.rl.weight_sync.history import Published, deltas_since, is_known
from sparse_plugins.wire import CodecError, read_delta_header

__all__ = ["WeightFolder"]

_PAUSE = 0.02  # seconds between two looks into a folder where nothing is yet
_NAME = re.compile(r"(\d{20})\.(delta|snapshot)")


class WeightFolder:
    """Writes versions for a `WeightSender`, and is a channel to a `WeightReceiver` of another process.

    Files appear whole or not at all. When a snapshot is written, what is older than the one before it is removed: a
    receiver that is reading then finds the newer ones.

    Args:
        path: The folder, made if it is not there.
        snapshot_every: Versions from one snapshot to the next.

    Raises:
        ValueError: If snapshot_every is below 1.

    Example:
        >>> import numpy as np, tempfile
        >>> from sparse_plugins.rl import WeightReceiver, WeightSender
        >>> params = {"w": np.ones(3, np.float32)}
        >>> with tempfile.TemporaryDirectory() as path:
        ...     sender = WeightSender(folder=WeightFolder(path))
        ...     _ = sender.publish(params), sender.publish(params)
        ...     receiver = WeightReceiver(params, WeightFolder(path))
        ...     receiver.update(), receiver.version, sorted(os.listdir(path))
        (True, 1, ['00000000000000000000.snapshot', '00000000000000000001.delta'])
    """

    def __init__(self, path: str | os.PathLike[str], snapshot_every: int = 100) -> None:
        if snapshot_every < 1:
            raise ValueError(f"snapshot_every is {snapshot_every}; give a number of versions, 1 or more.")
        self._path, self._every = Path(path), snapshot_every
        self._path.mkdir(parents=True, exist_ok=True)
        self._last_snapshot: int | None = None
        self._request, self._replies = Request(None), deque[bytes]()

    def is_snapshot_due(self, version: int) -> bool:
        """Whether the sender has to write a snapshot of this version."""
        return self._last_snapshot is None or version - self._last_snapshot >= self._every

    def write(self, payload: bytes) -> None:
        """Adds a file, and removes those that nobody needs any more.

        Args:
            payload: A delta or a snapshot.

        Raises:
            OSError: If it can't be written.
            ValueError: If another run has written there.
        """
        header = read_delta_header(payload)
        is_snapshot = header.base_version is None
        if self._last_snapshot is None and (self._files("delta") or self._files("snapshot")):
            raise ValueError(f"{self._path} holds weights of another run: give an empty folder, or a new one.")
        path = self._path / f"{header.version:020}.{'snapshot' if is_snapshot else 'delta'}"
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(payload)
        os.replace(part, path)
        if is_snapshot:
            for version, old in [*self._files("delta"), *self._files("snapshot")]:
                if self._last_snapshot is not None and version < self._last_snapshot:
                    old.unlink(missing_ok=True)
            self._last_snapshot = header.version

    def send_bytes(self, buf: bytes, /) -> None:
        """Takes a receiver's request."""
        self._request = Request.read(buf)

    def recv_bytes(self, maxlength: int, /) -> bytes:
        """The next part of the reply.

        Raises:
            CodecError: If it is longer than `maxlength`.
        """
        message = self._replies.popleft()
        if len(message) > maxlength:
            raise CodecError(f"a file in {self._path} has {len(message)} bytes, and {maxlength} are the most here.")
        return message

    def poll(self, timeout: float | None, /) -> bool:
        """Whether the reply is there within so many seconds: at once, if anything was ever written.

        Raises:
            CodecError: If a file is damaged.
        """
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while not self._replies:
            with contextlib.suppress(FileNotFoundError):  # the sender has removed what was listed
                self._replies.extend(self._looked_up(self._request))
            if self._replies or (left := end - time.monotonic()) <= 0:
                break
            time.sleep(min(left, _PAUSE))
        return bool(self._replies)

    def _looked_up(self, request: Request) -> list[bytes]:
        """Reply and payloads; nothing where nothing was written yet."""
        snapshots = self._files("snapshot")
        if not snapshots:
            return []
        version, path = snapshots[-1]
        first = version if request.version is None else min(version, request.version)
        deltas = [self._published(path) for number, path in self._files("delta") if number > first]
        snapshot = self._published(path)
        newest = max([snapshot, *deltas], key=lambda published: published.header.version).header
        if is_known(request, newest.version, newest.digest):
            payloads: Sequence[Published] = []
        elif (chain := deltas_since(request, deltas)) is not None:
            payloads = chain
        else:
            known = Request(version, snapshot.header.digest)
            payloads = [snapshot, *(deltas_since(known, deltas) or [])]
        return [Reply(len(payloads), newest.version).packed(), *(published.payload for published in payloads)]

    @staticmethod
    def _published(path: Path) -> Published:
        payload = path.read_bytes()
        try:
            return Published(read_delta_header(payload), payload)
        except CodecError as error:
            raise CodecError(f"{path}: {error}") from error

    def _files(self, suffix: str) -> list[tuple[int, Path]]:
        """Version and path, in order."""
        found = ((match, path) for path in self._path.iterdir() if (match := _NAME.fullmatch(path.name)))
        return sorted((int(match[1]), path) for match, path in found if match[2] == suffix)
