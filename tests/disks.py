"""A disk that is full, for real: a small tmpfs, or where mounting is not permitted, a limit on the size of files."""

import contextlib
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_MOUNT = ("mount", "-t", "tmpfs")


def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run([*_MOUNT, "-o", "size=4096", "tmpfs", folder], capture_output=True, check=False)
        if made.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return made.returncode == 0


# The names of tests tell which of them were tried; the first is the better one.
WAYS = ("disk", "files") if _may_mount() else ("files",)


@contextlib.contextmanager
def little_space(way: str, folder: Path, size: int) -> Iterator[Callable[[], object]]:
    """A new folder without much space.

    Args:
        way: "disk" takes so many bytes in all, then writing raises ENOSPC; "files" takes half of them in any one
            file, then writing raises EFBIG, in whatever folder.
        folder: To be made.
        size: Bytes.

    Yields:
        A function that makes space.
    """
    folder.mkdir()
    with (_small_disk if way == "disk" else _small_files)(folder, size) as grow:
        yield grow


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    subprocess.run([*_MOUNT, "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield lambda: subprocess.run([*_MOUNT, "-o", "remount,size=256m", "tmpfs", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def _small_files(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def few_open_files() -> Iterator[None]:
    """No further file can be opened: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
