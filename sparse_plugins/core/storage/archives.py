"""Arrays from an .npz file that anyone may have written: what is read is what was expected, or nothing.

Dtype, shape and size of an array are compared with the expected ones before memory is taken for it, members that
nobody asks for are never read, and nothing is unpickled or evaluated.
"""

import math
import re
import zipfile
from typing import IO, BinaryIO

import numpy as np

from sparse_plugins.core.storage.array_files import DamagedFileError, damage, read_into

__all__ = ["Archive", "damage"]

_MAGIC = b"\x93NUMPY\x01\x00"
_NUMBERS = re.compile(
    rb"\{'descr': '(?P<dtype>[<|][biufcSU]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \((?P<shape>(\d{1,18}, ?)*(\d{1,18})?)\), \}"
)


class Archive:
    """An open .npz file.

    Args:
        file: Opened for reading bytes; it has to stay open.

    Raises:
        DamagedFileError: If it is none, or two members share a name.

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
                raise DamagedFileError("several members have the same name")

    def array(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """An array of known dtype and shape.

        Args:
            name: Without `.npy`.
            dtype: One that NumPy itself has.
            shape: Shape of the array.

        Returns:
            The array; memory for it is taken once its size is known to be right.

        Raises:
            DamagedFileError: If there is no such member, or it is anything else.
        """
        with damage(), self._open(name) as member:
            is_fortran = self._check_header(member, name, dtype, shape)
            if (left := self._left(member, name)) != (size := math.prod(shape) * dtype.itemsize):
                raise DamagedFileError(f"{name} has {left:,} bytes of data; {dtype}{list(shape)} takes {size:,}")
            array = np.empty(shape, dtype, order="F" if is_fortran else "C")
            read_into(array.T if is_fortran else array, member)
            return array

    def arrays(self, limit: int) -> dict[str, np.ndarray]:
        """All arrays, of whatever shape and dtype of numbers or text.

        Args:
            limit: How many bytes they may take together.

        Raises:
            DamagedFileError: If they take more, or a member is anything else.

        Example:
            >>> import io
            >>> np.savez(file := io.BytesIO(), w=np.eye(2), n=np.array(3))
            >>> {name: array.tolist() for name, array in Archive(file).arrays(limit=1000).items()}
            {'w': [[1.0, 0.0], [0.0, 1.0]], 'n': 3}
        """
        if (size := sum(info.file_size for info in self._zip.infolist())) > limit:
            raise DamagedFileError(f"its members take {size:,} bytes; {limit:,} are allowed here")
        found = {}
        with damage():
            for name in self._zip.namelist():
                with self._open(name := name.removesuffix(".npy")) as member:
                    header = self._header(member)
                if (described := _NUMBERS.fullmatch(header)) is None:
                    raise DamagedFileError(f"{name} is {header[:200]!r}, which is no array of numbers or text")
                shape = tuple(int(axis) for axis in described["shape"].split(b",") if axis)
                found[name] = self.array(name, np.dtype(described["dtype"].decode()), shape)
        return found

    def text(self, name: str, limit: int) -> bytes:
        """Bytes, written as an array of uint8.

        Args:
            name: Without `.npy`.
            limit: How many bytes there may be.

        Raises:
            DamagedFileError: If there is no such member, it is anything else, or longer.
        """
        with damage(), self._open(name) as member:
            length = member.read(len(_MAGIC) + 2)[len(_MAGIC) :]
            size = self._left(member, name) - int.from_bytes(length, "little")
        if not 0 <= size <= limit:
            raise DamagedFileError(f"{name} has {size:,} bytes; {limit:,} are allowed here")
        return self.array(name, np.dtype(np.uint8), (size,)).tobytes()

    def _open(self, name: str) -> IO[bytes]:
        info = self._zip.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedFileError(f"{name} is compressed by method {info.compress_type}, which is not used here")
        return self._zip.open(info)

    def _left(self, member: IO[bytes], name: str) -> int:
        return self._zip.getinfo(f"{name}.npy").file_size - member.tell()

    @staticmethod
    def _header(member: IO[bytes]) -> bytes:
        """What NumPy writes before an array."""
        front = member.read(len(_MAGIC) + 2)
        if not front.startswith(_MAGIC):
            raise DamagedFileError(f"a member begins with {front!r}, which is not how NumPy writes small headers")
        return member.read(int.from_bytes(front[len(_MAGIC) :], "little")).rstrip()

    def _check_header(self, member: IO[bytes], name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
        """Reads the header of an array; whether its first axis is the fastest."""
        header = self._header(member)
        for is_fortran in (False, True):
            expected = f"{{'descr': '{dtype.str}', 'fortran_order': {is_fortran}, 'shape': {shape}, }}"
            if header == expected.encode():
                return is_fortran
        raise DamagedFileError(f"{name} is {header[:200]!r}, where {dtype}{list(shape)} belongs")
