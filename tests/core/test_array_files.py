"""Files of values: they come back as they were, and a forged one takes no memory and does no harm."""

import io
import pickle
import tracemalloc
import zipfile
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from sparse_plugins.core.storage.array_files import Blocks, DamagedFileError, StoredArray, open_values, write_values
from sparse_plugins.core.storage.values import like_tree, tree_values

VALUES = {
    "numbers": [1, -2.5, True, None, 1 << 127, float("inf"), "ü"],
    "scalars": [np.bool_(True), np.int64(3), np.float64(0.5), np.float32(0.5)],
    "arrays": (np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 4)), np.asfortranarray(np.eye(3))),
    "jax": {"bfloat16": jnp.ones(3, jnp.bfloat16), "key": jax.random.key(3)},
    "large": np.arange(1 << 20, dtype=np.int32),
}


def written(values: Any) -> bytes:
    write_values(file := io.BytesIO(), values)
    return file.getvalue()


def read(value: Any) -> Any:
    if isinstance(value, StoredArray):
        array = value.read()
        return array.dtype.str, array.shape, array.tobytes()
    if isinstance(value, dict):
        return {name: read(part) for name, part in value.items()}
    return [read(part) for part in value] if isinstance(value, list) else value


def read_all(content: bytes) -> Any:
    with open_values(io.BytesIO(content)) as values:
        return read(values)


def test_a_dtype_that_came_from_elsewhere_is_the_same_dtype() -> None:
    """NumPy makes another object of it, which says that it is not built in."""
    array = pickle.loads(pickle.dumps(np.ones(3, np.float32)))
    assert written(array) == written(np.ones(3, np.float32))


def test_values_come_back_bit_for_bit_and_equal_values_are_equal_files() -> None:
    content = written(VALUES)
    assert content == written(VALUES)
    back = read_all(content)
    assert back["numbers"] == VALUES["numbers"]
    assert back["scalars"] == [True, 3, 0.5, ("<f4", (), np.float32(0.5).tobytes())]
    assert back["arrays"] == [(array.dtype.str, array.shape, array.tobytes()) for array in VALUES["arrays"]]
    assert back["jax"]["bfloat16"] == ("<u2", (3,), np.full(3, 16256, np.uint16).tobytes())
    assert back["large"] == ("<i4", (1 << 20,), VALUES["large"].tobytes())
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:  # an ordinary file
        assert archive["1"].tolist() == VALUES["arrays"][0].tolist()


@pytest.mark.parametrize("sizes", [(1, 2, 0, 7), (10,)])
def test_an_array_is_written_and_read_in_pieces(sizes: tuple[int, ...]) -> None:
    content = written(Blocks(np.uint8, (10,), [b"0123", b"456789"]))
    with open_values(io.BytesIO(content)) as stored:
        assert b"".join(stored.pieces(sizes)) == b"0123456789"
        for wrong in ((4,), (11,), (-1, 11)):
            with pytest.raises(DamagedFileError, match=r"beyond its pieces|don't fit"):
                list(stored.pieces(wrong))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"a": [1, object()]}, r"values\['a'\]\[1\] is a object; files hold numbers"),
        ({"a": np.array(["text"])}, r"values\['a'\]: files hold arrays of numbers; this is one of <U4"),
        ({"a": np.array([None])}, "this is one of object"),
        ({1: 2}, "values has the key 1; keys are text"),
        ({"@array": 2}, "values has the key '@array'"),
    ],
)
def test_what_is_no_value_is_said_when_it_is_written(values: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        written(values)


def test_too_much_text_is_an_error_when_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"4,194,304 are read\. Use arrays"):
        written([0.123456789] * 500_000)


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def manifest(text: bytes) -> bytes:
    return npy(np.frombuffer(text, np.uint8))


DEEP = manifest(b"[" * 100_000 + b"]" * 100_000)
FORGED = {
    "no archive": b"text",
    "an empty one": archive_of({}),
    "compressed": archive_of({"manifest.npy": manifest(b"0" * 4_000_000)}, zipfile.ZIP_DEFLATED),
    "another member": archive_of({"manifest.npy": manifest(b"1"), "surplus.npy": npy(np.zeros(1 << 20))}),
    "an array that nobody lists": archive_of({"manifest.npy": manifest(b"1"), "0.npy": npy(np.zeros(3))}),
    "an array that is not there": archive_of({"manifest.npy": manifest(b'{"@array": [0, "<f4", [3]]}')}),
    "an array that is larger": archive_of(
        {"manifest.npy": manifest(b'{"@array": [0, "<f8", [1073741824]]}'), "0.npy": npy(np.zeros(3))}
    ),
    "another dtype than in its header": archive_of(
        {"manifest.npy": manifest(b'{"@array": [0, "<f8", [3]]}'), "0.npy": npy(np.zeros(3, np.int64))}
    ),
    "objects": archive_of(
        {"manifest.npy": manifest(b'{"@array": [0, "|O", [1]]}'), "0.npy": npy(np.zeros(1, np.int64))}
    ),
    "a negative size": archive_of(
        {"manifest.npy": manifest(b'{"@array": [0, "<f8", [-1, -3]]}'), "0.npy": npy(np.zeros(3))}
    ),
    "deeply nested": archive_of({"manifest.npy": DEEP}),
    "a number of too many digits": archive_of({"manifest.npy": manifest(b"9" * 10_000)}),
    "no JSON": archive_of({"manifest.npy": manifest(b"{]")}),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_file_is_refused_and_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(DamagedFileError):
        read_all(FORGED[name])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 32 << 20


SMALL = written({"a": np.arange(5.0), "b": [1, "two", np.arange(3, dtype=np.uint8)]})


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(data=st.data())
def test_changed_bytes_are_found_or_say_nothing(data: Any) -> None:
    content = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), len(content), len(content) - 1, len(content) // 2]))]
    try:
        back = read_all(bytes(content))
    except DamagedFileError:
        return
    assert back == read_all(SMALL)


def test_a_tree_goes_into_what_there_is() -> None:
    tree = {
        "key": jax.random.key(5, impl="rbg"),
        "host": np.arange(3),
        "device": jnp.ones((2, 2), jnp.bfloat16),
        "python": [3, 0.5, True, None],
        "scalar": np.float32(2),
    }
    blank = {**jax.tree.map(lambda leaf: leaf, tree), "host": np.zeros(3, int), "python": [0, 0.0, False, None]}
    with open_values(io.BytesIO(written(tree_values(tree)))) as stored:
        back = like_tree(stored, blank, "the tree")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert [type(leaf) for leaf in jax.tree.leaves(back)] == [type(leaf) for leaf in jax.tree.leaves(tree)]
    assert all(
        np.all(leaf == original) for leaf, original in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True)
    )


@pytest.mark.parametrize(
    ("like", "problem"),
    [
        ({"w": np.zeros(4)}, r"the tree/w is float64\[3\]; allowed is float64\[4\]"),
        ({"w": np.zeros(3, np.float32)}, "allowed is float32"),
        ({"v": np.zeros(3)}, "does not have the leaves v of this run"),
        ({"w": 0}, "allowed is a whole number"),
        ({"w": 0.5}, "allowed is a float"),
        ({"w": True}, "allowed is True or False"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(like: Any, problem: str) -> None:
    with (
        open_values(io.BytesIO(written(tree_values({"w": np.zeros(3)})))) as stored,
        pytest.raises(DamagedFileError, match=problem),
    ):
        like_tree(stored, like, "the tree")
