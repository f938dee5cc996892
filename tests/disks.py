"""A disk that is full, for real: a small tmpfs, or where mounting is not permitted, a limit on the size of files."""

import contextlib
import resource
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

WAYS = ("disk", "files")
Grow = Callable[[], None]


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Grow]:
    """A folder that takes so many bytes; writing more of them raises ENOSPC.

    Where mounting is not permitted it is a warning that says so, and `small_files` stands in.

    Args:
        folder: A new one.
        size: Bytes, of whole pages.

    Yields:
        A function that makes space.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs"]
    made = subprocess.run([*mount, "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True)
    if made.returncode:
        told = made.stderr.strip()
        warnings.warn(f"no disk can be mounted here ({told}); a limit on the size of files stands in", stacklevel=3)
        with small_files(folder, size // 2) as grow:
            yield grow
        return
    try:
        yield lambda: subprocess.run([*mount, "-o", "remount,size=256m", "tmpfs", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def small_files(folder: Path, size: int) -> Iterator[Grow]:
    """Files of this process may have so many bytes; writing more of them raises EFBIG."""
    folder.mkdir(exist_ok=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    grow = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # noqa: E731
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield grow
    finally:
        grow()


@contextlib.contextmanager
def few_open_files() -> Iterator[None]:
    """No further file can be opened: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
