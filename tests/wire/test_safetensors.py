"""Deltas as safetensors files, written and read as TRL's pull request 5937 does."""

import json
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from sparse_plugins.wire import BaseMismatchError, CodecError, apply_safetensors, safetensors_delta
from tests.wire.cases import same_bits

RNG = np.random.default_rng(0)
BASE = {
    "b": RNG.normal(size=3),
    "f": np.array([True, False]),
    "m.layers.0.w": RNG.normal(size=(50, 40)).astype(ml_dtypes.bfloat16),
    "s": np.float32(1),
    "z": RNG.normal(size=70_000).astype(ml_dtypes.float8_e4m3fn),
}


def moved() -> dict[str, Any]:
    new = {name: np.array(leaf) for name, leaf in BASE.items()}
    new["m.layers.0.w"].reshape(-1).view(np.uint16)[[3, 4, 1999]] ^= 0x8001
    new["z"][-1:].view(np.uint8)[:] ^= 1
    new["f"] = ~new["f"]
    return new


NEW = moved()


@pytest.mark.parametrize("encoding", ["raw", "gap_delta"])
def test_what_is_written_is_read(encoding: str) -> None:
    patch = safetensors_delta(NEW, BASE, version=5, base_version=4, encoding=encoding)
    same_bits(apply_safetensors(patch, BASE), NEW)
    same_bits(apply_safetensors(safetensors_delta(NEW, encoding=encoding), BASE), NEW)


def slow_reading(patch: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As the description of safetensors says."""
    length = int.from_bytes(patch[:8], "little")
    header, data = json.loads(patch[8 : 8 + length]), patch[8 + length :]
    metadata = header.pop("__metadata__")
    types = {"I32": "<i4", "U16": "<u2", "U32": "<u4", "BF16": "<u2", "BOOL": "u1", "F8_E4M3": "u1"}
    read = lambda entry: np.frombuffer(data[slice(*entry["data_offsets"])], types[entry["dtype"]])  # noqa: E731
    return {name: read(entry).reshape(entry["shape"]) for name, entry in header.items()}, metadata


def test_files_have_the_names_types_and_metadata_of_the_proposal() -> None:
    tensors, metadata = slow_reading(safetensors_delta(NEW, BASE, version=5, base_version=4))
    assert sorted(tensors) == [f"{name}.{end}" for name in ("f", "m.layers.0.w", "z") for end in ("idx", "val")]
    assert tensors["m.layers.0.w.idx"].tolist() == [3, 0, 1994]
    assert (
        tensors["m.layers.0.w.val"].tolist() == NEW["m.layers.0.w"].view(np.uint16).reshape(-1)[[3, 4, 1999]].tolist()
    )
    assert (tensors["z.idx"].dtype, tensors["z.idx"].tolist()) == (np.uint32, [69_999])
    described = {key: metadata[key] for key in ("format", "version", "sparse", "model_version", "encoding")}
    assert described == {
        "format": "sparse_weight_patch",
        "version": "1",
        "sparse": "True",
        "model_version": "5",
        "encoding": "gap_delta",
    }
    assert (metadata["total_changed_elements"], metadata["total_elements"]) == ("6", "72006")
    raw, _ = slow_reading(safetensors_delta(NEW, BASE, encoding="raw"))
    assert (raw["m.layers.0.w.idx"].dtype, raw["m.layers.0.w.idx"].tolist()) == (np.int32, [3, 4, 1999])


def changed(patch: bytes, change: Any, data: Any = lambda data: data) -> bytes:
    length = int.from_bytes(patch[:8], "little")
    header = json.loads(patch[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data(patch[8 + length :])


def without_digests(header: dict[str, Any]) -> None:
    for key in ("base_digest", "digest", "base_version"):
        del header["__metadata__"][key]


PATCH = safetensors_delta(NEW, BASE, version=5, base_version=4)


def test_files_from_elsewhere_have_no_digests_and_are_read() -> None:
    same_bits(apply_safetensors(changed(PATCH, without_digests), BASE), NEW)


def set_to(*path: str, value: Any) -> Any:
    def change(header: dict[str, Any]) -> None:
        without_digests(header)
        *front, last = path
        for key in front:
            header = header[key]
        header[last] = value

    return change


W = "m.layers.0.w"


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (b"", "no safetensors file, or it was cut off"),
        (PATCH[:-1], "the file was cut off"),
        (PATCH[:40], "no safetensors file, or it was cut off"),
        ((4).to_bytes(8, "little") + b"[[]]", "header of this safetensors file can't be read"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "header of this safetensors file can't be read"),
        (
            changed(PATCH, set_to("__metadata__", "format", value="pt")),
            "says that it is 'pt', and 'sparse_weight",
        ),
        (changed(PATCH, set_to("__metadata__", "encoding", value="nvcomp")), "written as 'nvcomp', and raw, gap_delta"),
        (changed(PATCH, set_to("__metadata__", "encoding", value="raw")), "has dtype U16; positions written as 'raw'"),
        (changed(PATCH, set_to("q.val", value=[])), "header of this safetensors file can't be read"),
        (changed(PATCH, lambda h: h.update({"q.val": h["f.val"]})), "about another model: it has 'q.val'"),
        (changed(PATCH, lambda h: h.pop(f"{W}.idx")), f"tensor '{W}' has values without positions"),
        (changed(PATCH, lambda h: h.pop(f"{W}.val")), f"tensor '{W}.val' is missing"),
        (changed(PATCH, set_to(f"{W}.val", "dtype", value="F16")), "has dtype F16 and 6 bytes; 3 entries of bfloat16"),
        (changed(PATCH, lambda h: h["f.idx"].update(data_offsets=[0, 2])), "has dtype BOOL and 2 bytes; 1 entries"),
        (changed(PATCH, lambda h: None, lambda data: b"\xff" * len(data)), "do not rise, or lead beyond 2 entries"),
        (changed(PATCH, lambda h: None, lambda data: data[:-1] + bytes([data[-1] ^ 2])), "not what the sender had"),
        (safetensors_delta({"w": np.ones(3)}), "about another model: it has 'w'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(patch: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        apply_safetensors(patch, BASE)


def test_another_base_is_refused_by_name() -> None:
    with pytest.raises(BaseMismatchError, match="other weights than version 4, on which this patch builds"):
        apply_safetensors(PATCH, NEW)


@given(st.data())
@settings(max_examples=100)
def test_mutated_files_are_refused_or_read(data: st.DataObject) -> None:
    content = bytearray(changed(PATCH, without_digests))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        result = apply_safetensors(bytes(content), BASE)
    except CodecError:
        return
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in result.items()} == {
        name: (np.shape(leaf), leaf.dtype) for name, leaf in BASE.items()
    }


def test_what_has_no_place_in_such_a_file_is_an_error() -> None:
    with pytest.raises(ValueError, match="encoding is 'zip'; choose one of raw, gap_delta"):
        safetensors_delta(NEW, BASE, encoding="zip")
    with pytest.raises(ValueError, match="give the weights of one model"):
        safetensors_delta(NEW, {"b": BASE["b"]})
    with pytest.raises(ValueError, match="tensor 'w' has dtype complex64, which safetensors has no name for"):
        safetensors_delta({"w": np.ones(2, np.complex64)})
