"""Numbers, text and arrays in one file that anyone may have written: what is read is data, and no more than asked for.

The file is an ordinary .npz without compression: a JSON manifest as bytes, then one array per member, each with the
checksum that the zip format has. Opening it reads the manifest alone, and compares what that says of every array with
the sizes in the archive. An array takes memory when it is asked for, after its reader has looked at dtype and shape.
"""

import contextlib
import errno
import io
import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Blocks",
    "DamagedFileError",
    "StoredArray",
    "damage",
    "numbers",
    "open_archive",
    "open_values",
    "read_bytes",
    "read_into",
    "write_values",
]

MANIFEST_BYTES = 1 << 22
_BLOCK = 1 << 20  # no more is read at once
_MANIFEST = "manifest.npy"
_ARRAY = "@array"
_DTYPES = {np.dtype(code).str: np.dtype(code) for code in "?bhilBHILefdFD"}


class DamagedFileError(ValueError):
    """A file is not what its reader wrote: cut off, changed, or made by someone else."""


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Around code that only reads bytes: whatever wrong bytes make it raise becomes `DamagedFileError`.

    What says nothing about the bytes passes: errors of the operating system (no permission, too many open files, a
    device that does not answer), of memory, and missing packages.

    Raises:
        DamagedFileError: With the kind and the message of what was raised.

    Example:
        >>> with damage():
        ...     int("x")
        Traceback (most recent call last):
        sparse_plugins.core.storage.array_files.DamagedFileError: ValueError: invalid literal for int() with base 10...
    """
    try:
        yield
    except (DamagedFileError, MemoryError, ImportError):
        raise
    except Exception as error:  # zip, zlib, JSON, struct and NumPy raise many kinds
        # A wrong offset makes seek fail with "invalid argument"; zip's own OSErrors have no number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DamagedFileError(f"{type(error).__name__}: {error}") from error


class Blocks:
    """An array that is written piece by piece, so that it is never whole in memory.

    Args:
        dtype: Its dtype.
        shape: Its shape.
        pieces: Its entries in order, as bytes or arrays.
    """

    def __init__(self, dtype: Any, shape: tuple[int, ...], pieces: Iterable[Any]) -> None:
        self.dtype, self.shape, self.pieces = np.dtype(dtype), tuple(shape), pieces


class StoredArray:
    """An array in an open file, not read yet.

    Attributes:
        dtype: What NumPy has; bfloat16 and similar types are stored as unsigned integers of their size.
        shape: Its shape.
        name: The member that holds it.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self._archive, self.name = archive, name
        if name not in archive.NameToInfo:
            raise DamagedFileError(f"it has no {name}")
        info, header = archive.getinfo(name), _header(dtype, shape)
        if not (
            info.compress_type == zipfile.ZIP_STORED
            and not info.flag_bits & 1  # encrypted
            and info.file_size == info.compress_size == len(header) + self.nbytes
        ):
            raise DamagedFileError(f"{name} does not have the size of {dtype}{list(shape)}")

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The array, in memory of its own.

        Raises:
            DamagedFileError: If it does not have its checksum.
        """
        array = np.empty(self.shape, self.dtype)
        with self._opened() as member:
            read_into(array, member)
        return array

    def pieces(self, sizes: Iterable[int]) -> Iterator[bytes]:
        """Its bytes, cut into pieces that are read one by one.

        Args:
            sizes: Bytes of each piece; they add up to `nbytes`.

        Raises:
            DamagedFileError: If they do not, or if the array does not have its checksum.
        """
        left = self.nbytes
        with self._opened() as member:
            for size in sizes:
                left -= size
                if size < 0 or left < 0:
                    raise DamagedFileError(f"the pieces of {self.name} don't fit into its {self.nbytes} bytes")
                yield b"".join(_exactly(member, min(_BLOCK, size - at)) for at in range(0, size, _BLOCK))
        if left:
            raise DamagedFileError(f"{self.name} has {left} bytes beyond its pieces")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        header = _header(self.dtype, self.shape)
        with damage(), self._archive.open(self.name) as member:
            if member.read(len(header)) != header:
                raise DamagedFileError(f"{self.name} is not the {self.dtype}{list(self.shape)} of the manifest")
            yield member


def write_values(file: str | Path | BinaryIO, values: Any) -> None:
    """Writes what `open_values` reads; equal values give equal bytes.

    Args:
        file: Path, or a file to write into.
        values: Numbers, text, None and arrays of JAX and NumPy, in lists, tuples and dictionaries with text for keys.

    Raises:
        TypeError: If there is anything else; the message says where.
        ValueError: If there is so much beside the arrays that it would not be read again.

    Example:
        >>> write_values(file := io.BytesIO(), {"step": 3, "seen": np.arange(4)})
        >>> with open_values(file) as values:
        ...     values["step"], values["seen"].shape, values["seen"].read().tolist()
        (3, (4,), [0, 1, 2, 3])
    """
    arrays: list[Any] = []
    text = json.dumps(_plain(values, arrays, "values")).encode()
    if len(text) > MANIFEST_BYTES:
        raise ValueError(f"beside arrays there are {len(text):,} bytes; {MANIFEST_BYTES:,} are read. Use arrays.")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write(archive, _MANIFEST, np.frombuffer(text, np.uint8))
        for i, array in enumerate(arrays):
            _write(archive, f"{i}.npy", array)


@contextlib.contextmanager
def open_values(file: str | Path | BinaryIO) -> Iterator[Any]:
    """Opens what `write_values` wrote.

    Memory for the values is bounded: 4 MiB of JSON, and no array yet.

    Args:
        file: Path, or a file open for reading.

    Yields:
        The values; tuples are lists, and arrays are `StoredArray`.

    Raises:
        DamagedFileError: If the file is anything else, or its arrays do not have the sizes that it says.
    """
    with open_archive(file) as archive:
        with damage():
            names = {f"{i}.npy" for i in range(len(archive.namelist()) - 1)}
            if {*archive.namelist()} != {_MANIFEST, *names}:
                raise DamagedFileError("it does not have the members of such a file")
            text = read_bytes(archive, _MANIFEST, MANIFEST_BYTES)
            found: set[str] = set()

            def revived(node: dict[str, Any]) -> Any:
                if _ARRAY not in node:
                    return node
                stored = _stored(archive, node)
                found.add(stored.name)
                return stored

            try:
                values = json.loads(text, object_hook=revived)
            except RecursionError:
                raise DamagedFileError("its manifest is nested too deeply") from None
            if found != names:
                raise DamagedFileError("its manifest and its members do not list the same arrays")
        yield values


@contextlib.contextmanager
def open_archive(file: str | Path | BinaryIO) -> Iterator[zipfile.ZipFile]:
    """A zip archive that takes no more memory than its members' sizes, which add up to no more than the file's.

    Raises:
        DamagedFileError: If it is no such archive.
    """
    with contextlib.ExitStack() as stack:
        binary = stack.enter_context(open(file, "rb")) if isinstance(file, str | os.PathLike) else file
        with damage():
            archive = stack.enter_context(zipfile.ZipFile(_Cautious(binary)))
            members = archive.infolist()
            if len({info.filename for info in members}) < len(members):
                raise DamagedFileError("members of it share a name")
            if sum(info.file_size for info in members) > archive.fp.size:  # type: ignore[union-attr]
                raise DamagedFileError("its members are larger than itself")
        yield archive


def read_bytes(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member that is an array of bytes of any length up to a limit.

    Args:
        archive: From `open_archive`.
        name: Name of the member.
        most: The limit, in bytes.

    Raises:
        DamagedFileError: If there is no such member, or it is longer.
    """
    with damage():
        length = archive.getinfo(name).file_size - len(_header(np.dtype(np.uint8), (0,)))
        if not 0 <= length <= most:
            raise DamagedFileError(f"{name} has {length:,} bytes; at most {most:,} are read")
        return StoredArray(archive, name, np.dtype(np.uint8), (length,)).read().tobytes()


def read_into(array: np.ndarray, member: Any) -> None:
    """Fills an array, contiguous in C order, with the bytes that an open member has next.

    Raises:
        DamagedFileError: If there are fewer.
    """
    view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    for start in range(0, len(view), _BLOCK):
        part = view[start : start + _BLOCK]
        part[:] = _exactly(member, len(part))


def numbers(array: Any) -> np.ndarray:
    """An array of JAX or NumPy as one of a dtype that NumPy itself has, bit-exactly.

    Args:
        array: The array; a typed key gives its words.

    Returns:
        The same numbers; bfloat16 and similar types as unsigned integers of their size.

    Raises:
        TypeError: If it holds anything but numbers.

    Example:
        >>> numbers(jnp.ones(2, jnp.bfloat16))
        array([16256, 16256], dtype=uint16)
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    host = np.asarray(array)
    if host.dtype.kind == "V" and host.dtype.type is not np.void:  # of ml_dtypes
        host = host.view(f"u{host.dtype.itemsize}")
    if host.dtype.str not in _DTYPES:
        raise TypeError(f"files hold arrays of numbers; this is one of {host.dtype}")
    return host


class _Cautious:
    """A file of which a forged archive can't ask for more than a block at once, nor for what lies before it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)

    def read(self, size: int = -1) -> bytes:
        size = self.size - self._file.tell() if size < 0 else size
        if size > _BLOCK:
            raise DamagedFileError(f"it asks for {size:,} bytes at once")
        return self._file.read(max(size, 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self.size}[whence]
        if not 0 <= start + offset <= self.size:
            raise DamagedFileError("it points to places outside itself")
        return self._file.seek(start + offset)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Whoever opened the file closes it."""


def _plain(value: Any, arrays: list[Any], where: str) -> Any:
    """The value as JSON has it, its arrays added to a list."""
    if isinstance(value, np.bool_ | np.int64 | np.float64):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part, arrays, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str) or key == _ARRAY]:
            raise TypeError(f"{where} has the key {wrong[0]!r}; keys are text.")
        return {key: _plain(part, arrays, f"{where}[{key!r}]") for key, part in value.items()}
    if not isinstance(value, Blocks | np.ndarray | np.generic | jax.Array):
        raise TypeError(f"{where} is a {type(value).__name__}; files hold numbers, text, arrays, lists, dictionaries.")
    if not isinstance(value, Blocks):
        try:
            value = numbers(value)
        except TypeError as error:
            raise TypeError(f"{where}: {error}") from None
    arrays.append(value)
    return {_ARRAY: [len(arrays) - 1, value.dtype.str, list(value.shape)]}


def _write(archive: zipfile.ZipFile, name: str, array: Any) -> None:
    # An entry with a name alone has no date, so that equal values give equal files.
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
        member.write(_header(array.dtype, array.shape))
        if isinstance(array, Blocks):
            for piece in array.pieces:
                member.write(piece)
            return
        entries = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(entries), _BLOCK):
            member.write(entries[start : start + _BLOCK])  # type: ignore[call-overload]


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    description = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header := io.BytesIO(), description)
    return header.getvalue()


def _stored(archive: zipfile.ZipFile, node: dict[str, Any]) -> StoredArray:
    match node:
        case {"@array": [int(index), str(code), list(shape)]} if (
            code in _DTYPES and len(shape) <= 16 and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
        ):
            return StoredArray(archive, f"{index}.npy", _DTYPES[code], tuple(shape))
    raise DamagedFileError("its manifest describes an array that it can't have")


def _exactly(member: Any, size: int) -> bytes:
    if len(data := member.read(size)) != size:
        raise DamagedFileError("it was cut off")
    return data
