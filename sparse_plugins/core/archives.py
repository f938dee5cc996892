"""Arrays from an .npz file that anyone may have written: what is read is what was expected, or nothing.

Dtype, shape and size of an array are compared with the expected ones before memory is taken for it, members that
nobody asks for are never read, and nothing is unpickled or evaluated.
"""

import contextlib
import errno
import math
import zipfile
from collections.abc import Iterator
from typing import IO, BinaryIO

import numpy as np

__all__ = ["Archive", "DamagedError", "damage"]

_MAGIC = b"\x93NUMPY\x01\x00"
_CHUNK = 1 << 20


class DamagedError(ValueError):
    """Bytes are not what was written, or were never written by this package."""


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Around code that only reads bytes: whatever wrong bytes make it raise becomes `DamagedError`.

    What says nothing about the bytes passes: errors of the operating system (no permission, too many open files, a
    device that does not answer), of memory, and missing packages.

    Raises:
        DamagedError: With the kind and the message of what was raised.

    Example:
        >>> with damage():
        ...     int("x")
        Traceback (most recent call last):
        sparse_plugins.core.archives.DamagedError: ValueError: invalid literal for int() with base 10: 'x'
    """
    try:
        yield
    except (DamagedError, MemoryError, ImportError):
        raise
    except Exception as error:  # zip, zlib, JSON, struct and NumPy raise many kinds
        # A wrong offset makes seek fail with "invalid argument"; zip's own OSErrors have no number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedError(f"{type(error).__name__}: {error}") from error


class Archive:
    """An open .npz file.

    Args:
        file: Opened for reading bytes; it has to stay open.

    Raises:
        DamagedError: If it is none, or two members share a name.

    Example:
        >>> import io
        >>> np.savez(file := io.BytesIO(), w=np.arange(3))
        >>> Archive(file).array("w", np.dtype(int), (3,)).tolist()
        [0, 1, 2]
    """

    def __init__(self, file: BinaryIO | IO[bytes]) -> None:
        with damage():
            self._zip = zipfile.ZipFile(file)
            names = self._zip.namelist()
            if len(set(names)) < len(names):
                raise DamagedError("several members have the same name")

    @property
    def size(self) -> int:
        """Bytes of all members together once they are decompressed; none can turn out larger than it says."""
        return sum(info.file_size for info in self._zip.infolist())

    def array(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """An array of known dtype and shape.

        Args:
            name: Without `.npy`.
            dtype: One that NumPy itself has.
            shape: Of it.

        Returns:
            The array; memory for it is taken once its size is known to be right.

        Raises:
            DamagedError: If there is no such member, or it is anything else.
        """
        with damage(), self._open(name) as member:
            is_fortran = self._check_header(member, name, dtype, shape)
            if (left := self._left(member, name)) != (size := math.prod(shape) * dtype.itemsize):
                raise DamagedError(f"{name} has {left:,} bytes of data; {dtype}{list(shape)} takes {size:,}")
            array = np.empty(shape, dtype, order="F" if is_fortran else "C")
            target = (array.T if is_fortran else array).reshape(-1).view(np.uint8)
            for start in range(0, size, _CHUNK):
                part = target[start : start + _CHUNK]
                if member.readinto(part) < part.size:  # type: ignore[attr-defined]
                    raise DamagedError(f"{name} was cut off")
            return array

    def text(self, name: str, limit: int) -> bytes:
        """Bytes, written as an array of uint8.

        Args:
            name: Without `.npy`.
            limit: How many bytes there may be.

        Raises:
            DamagedError: If there is no such member, it is anything else, or longer.
        """
        with damage(), self._open(name) as member:
            length = member.read(len(_MAGIC) + 2)[len(_MAGIC) :]
            size = self._left(member, name) - int.from_bytes(length, "little")
        if not 0 <= size <= limit:
            raise DamagedError(f"{name} has {size:,} bytes; {limit:,} are allowed here")
        return self.array(name, np.dtype(np.uint8), (size,)).tobytes()

    def _open(self, name: str) -> IO[bytes]:
        info = self._zip.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedError(f"{name} is compressed by method {info.compress_type}, which is not used here")
        return self._zip.open(info)

    def _left(self, member: IO[bytes], name: str) -> int:
        return self._zip.getinfo(f"{name}.npy").file_size - member.tell()

    @staticmethod
    def _check_header(member: IO[bytes], name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
        """Reads the header that NumPy writes before an array; whether its first axis is the fastest."""
        front = member.read(len(_MAGIC) + 2)
        header = member.read(int.from_bytes(front[len(_MAGIC) :], "little")).rstrip()
        for is_fortran in (False, True):
            expected = f"{{'descr': '{dtype.str}', 'fortran_order': {is_fortran}, 'shape': {shape}, }}"
            if front.startswith(_MAGIC) and header == expected.encode():
                return is_fortran
        raise DamagedError(f"{name} is {header[:200]!r}, where {dtype}{list(shape)} belongs")
