"""Sparse files by a stranger: a ValueError with the file's name, and no more memory than the model takes."""

import errno
import io
import json
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_plugins.core.export.file_format import load_sparse, save_sparse
from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.core.storage.archives import Archive
from sparse_plugins.core.storage.array_files import DamagedFileError, damage
from tests.disks import few_open_files

LIKE = {"w": jnp.arange(12.0).reshape(3, 4) * jnp.eye(3, 4), "b": jnp.ones(2)}
MASKS = {"w": jnp.eye(3, 4, dtype=jnp.uint8), "b": NOT_PRUNED}
Arrays = dict[str, np.ndarray]
Header = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_sparse(tmp_path / "model.npz", LIKE, MASKS)
    return tmp_path / "model.npz"


def forge(path: Path, change: Callable[[Header, Arrays], Any], **options: Any) -> None:
    """Writes the file anew after a change, with checksums that fit, as an attacker would."""
    with np.load(path) as stored:
        arrays = dict(stored)
    header = json.loads(arrays.pop("header").tobytes())
    change(header, arrays)
    for place, entry in enumerate(header["leaves"] if isinstance(header["leaves"], list) else ()):
        parts = [arrays[key].tobytes() for key in (f"{place}.mask", f"{place}.values") if key in arrays]
        if isinstance(entry, dict) and "crc32" in entry:
            entry["crc32"] = zlib.crc32(b"".join(parts))
    arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, array in arrays.items():
            np.lib.format.write_array(file := io.BytesIO(), np.asarray(array))
            archive.writestr(f"{name}.npy", file.getvalue())


def of_b(**changes: Any) -> Callable[[Header, Arrays], None]:
    return lambda header, arrays: header["leaves"][0].update(changes)


def of_arrays(**changes: Callable[[np.ndarray], Any]) -> Callable[[Header, Arrays], None]:
    """Changes to arrays; `w_mask` is the mask of leaf 'w', which stands at place 1."""
    places = {"b": 0, "w": 1}

    def change(header: Header, arrays: Arrays) -> None:
        for name, function in changes.items():
            key = f"{places[name[0]]}.{name[2:]}"
            arrays[key] = np.asarray(function(arrays[key]))

    return change


FORGED = {
    "an int64 mask": of_arrays(w_mask=lambda mask: mask.astype(np.int64)),
    "a mask of two axes": of_arrays(w_mask=lambda mask: mask[None]),
    "a mask that is too short": of_arrays(w_mask=lambda mask: mask[:1]),
    "a mask of ones without values for them": of_arrays(w_mask=lambda mask: mask | 255),
    "values of two axes": of_arrays(w_values=lambda values: values[:, None]),
    "a value for all places": of_arrays(w_values=lambda values: values[:1]),
    "a value without axes": of_arrays(w_values=lambda values: values[0]),
    "no values": of_arrays(w_values=lambda values: values[:0]),
    "too many values": of_arrays(w_values=lambda values: np.ones(12, np.float32)),
    "values of another dtype": of_arrays(w_values=lambda values: values.astype(np.float64)),
    "values of the other byte order": of_arrays(b_values=lambda values: values.astype(">f4")),
    "values of the same size": of_arrays(b_values=lambda values: values.view(np.int32)),
    "values that are records": of_arrays(b_values=lambda values: values.view([("x", "<f4")])),
    "values that are times": of_arrays(b_values=lambda values: np.zeros(2, "M8[s]")),
    "dense values of another shape": of_arrays(b_values=lambda values: values[None]),
    "a value for a dense leaf": of_arrays(b_values=lambda values: values[:1]),
    "a member that is missing": lambda header, arrays: arrays.pop("1.values"),
    "a shape that is a number": of_b(shape=2),
    "a shape that is text": of_b(shape="2"),
    "a shape that is nothing": of_b(shape=None),
    "a shape of NaN": of_b(shape=[float("nan")]),
    "a negative size": of_b(shape=[-2]),
    "a size that is a fraction": of_b(shape=[2.0]),
    "a size that is true": of_b(shape=[True, 2]),
    "nested sizes": of_b(shape=[[2]]),
    "a dtype of objects": of_b(dtype="object"),
    "a dtype that is a number": of_b(dtype=4),
    "a name that is a list": of_b(name=["b"]),
    "a name that is nothing": of_b(name=None),
    "pruned by a number": of_b(pruned=0),
    "a checksum that is text": lambda header, arrays: header["leaves"].append({**header["leaves"][0], "crc32": "x"}),
    "a leaf twice": lambda header, arrays: header["leaves"].insert(0, dict(header["leaves"][0])),
    "an entry without a checksum": lambda header, arrays: header["leaves"][0].pop("crc32"),
    "an entry that is text": lambda header, arrays: header.update(leaves=["b", "w"]),
    "leaves that are a number": lambda header, arrays: header.update(leaves=3),
    "leaves by name": lambda header, arrays: header.update(leaves={"b": 1}),
    "another format": lambda header, arrays: header.update(format=None),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_an_error_that_names_it(name: str, path: Path) -> None:
    forge(path, FORGED[name])
    with pytest.raises(ValueError, match=r"model\.npz") as caught:
        load_sparse(path, LIKE)
    assert type(caught.value) is ValueError


def test_a_file_that_was_only_written_anew_is_read(path: Path) -> None:
    forge(path, lambda header, arrays: None, compression=zipfile.ZIP_DEFLATED)
    assert load_sparse(path, LIKE)[0]["w"].tolist() == (LIKE["w"] * MASKS["w"]).tolist()


def test_arrays_whose_first_axis_is_the_fastest_are_read_as_they_were(tmp_path: Path) -> None:
    dense = {"w": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))}
    save_sparse(tmp_path / "model.npz", dense, {"w": NOT_PRUNED})
    assert load_sparse(tmp_path / "model.npz", dense)[0]["w"].tolist() == dense["w"].tolist()


@pytest.mark.parametrize("options", [{"compression": zipfile.ZIP_LZMA}, {"compression": zipfile.ZIP_BZIP2}], ids=str)
def test_only_what_save_sparse_uses_is_decompressed(options: dict, path: Path) -> None:
    forge(path, lambda header, arrays: None, **options)
    with pytest.raises(ValueError, match=r"model\.npz is damaged.*is compressed by method"):
        load_sparse(path, LIKE)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1e400', "1" * 10_000, "null", "[]", "\ud800"], ids=len)
def test_a_header_that_is_no_header_is_an_error_that_names_the_file(text: str, path: Path) -> None:
    np.savez(path, header=np.frombuffer(text.encode(errors="surrogatepass"), np.uint8))
    with pytest.raises(ValueError, match=r"model\.npz is damaged"):
        load_sparse(path, LIKE)


ZEROS = 50_000_000


def surplus(archive: zipfile.ZipFile) -> None:
    """A member that nobody asks for."""
    _zeros(archive, "9.values.npy", "<f4", ZEROS // 4)


def long_values(archive: zipfile.ZipFile) -> None:
    _zeros(archive, "0.values.npy", "<f4", ZEROS // 4)


def short_shape(archive: zipfile.ZipFile) -> None:
    """More data than its shape says."""
    _zeros(archive, "0.values.npy", "<f4", 2)


def long_header(archive: zipfile.ZipFile) -> None:
    _zeros(archive, "header.npy", "|u1", ZEROS)


def long_description(archive: zipfile.ZipFile) -> None:
    """NumPy would read four gigabytes of description."""
    with archive.open("0.values.npy", "w", force_zip64=True) as member:
        member.write(b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
        member.write(bytes(ZEROS))


def _zeros(archive: zipfile.ZipFile, name: str, dtype: str, count: int) -> None:
    with archive.open(name, "w", force_zip64=True) as member:
        header = {"descr": dtype, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(ZEROS))


@pytest.mark.parametrize("bomb", [surplus, long_values, short_shape, long_header, long_description])
def test_a_small_file_takes_no_large_memory(bomb: Callable, path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        bomb(archive)
        for name in set(members) - set(archive.namelist()):
            archive.writestr(name, members[name])
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        if bomb is surplus:
            assert load_sparse(path, LIKE)[0]["b"].tolist() == [1, 1]
        else:
            with pytest.raises(ValueError, match=r"model\.npz is damaged"):
                load_sparse(path, LIKE)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_sizes_in_the_directory_are_not_believed(path: Path) -> None:
    """The directory may say less or more than there is: what is too short or too long is refused."""
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")
    for change in (-4, 4, 2**31):
        size = int.from_bytes(whole[at + 24 : at + 28], "little") + change
        path.write_bytes(whole[: at + 24] + size.to_bytes(4, "little") + whole[at + 28 :])
        with pytest.raises(ValueError, match=r"model\.npz is damaged"):
            load_sparse(path, LIKE)


def test_two_members_of_a_name_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("0.values.npy", archive.read("0.values.npy"))
    with pytest.raises(ValueError, match=r"model\.npz is damaged.*several members have the same name"):
        load_sparse(path, LIKE)


class Failing(io.BytesIO):
    """A file on a device that stops to answer."""

    def read(self, *arguments: Any) -> bytes:
        if self.tell() < 40:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(*arguments)


def test_what_says_nothing_about_the_bytes_is_no_damage(path: Path) -> None:
    archive = Archive(Failing(path.read_bytes()))
    with pytest.raises(OSError, match="Input/output error"):
        archive.array("header", np.dtype(np.uint8), (1,))
    for error in (MemoryError(), ImportError(), OSError(errno.EMFILE, "Too many open files"), PermissionError(13, "")):
        with pytest.raises(type(error)) as caught, damage():
            raise error
        assert caught.value is error
    for error in (OSError("no number"), OSError(errno.EINVAL, "Invalid argument"), RecursionError(), RuntimeError()):
        with pytest.raises(DamagedFileError), damage():
            raise error


def test_too_many_open_files_do_not_make_a_file_damaged(path: Path) -> None:
    with few_open_files(), pytest.raises(OSError, match="Too many open files"):
        load_sparse(path, LIKE)


def test_all_arrays_of_a_file_are_read_if_they_are_numbers_or_text(tmp_path: Path) -> None:
    arrays = {"n": np.int64(3), "flags": np.eye(2, dtype=bool), "w": np.ones((0, 4), np.float32), "t": np.array(["ü"])}
    np.savez_compressed(tmp_path / "all.npz", **arrays)
    with (tmp_path / "all.npz").open("rb") as file:
        found = Archive(file).arrays(limit=1000)
        with pytest.raises(DamagedFileError, match=r"its members take .* bytes; 100 are allowed here"):
            Archive(file).arrays(limit=100)
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    for refused in (np.array([{}], object), np.zeros(1, "M8[s]"), np.zeros(1, [("x", "<f4")]), np.zeros(1, ">f4")):
        np.savez(tmp_path / "all.npz", x=refused)
        with (
            (tmp_path / "all.npz").open("rb") as file,
            pytest.raises(DamagedFileError, match=r"x is .*no array of numbers"),
        ):
            Archive(file).arrays(limit=10**6)
