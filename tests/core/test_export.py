import functools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import sparse

from sparse_plugins import core
from sparse_plugins.core import export
from sparse_plugins.core.masks import NOT_PRUNED, pack_masks, unpack_masks
from sparse_plugins.core.structures import Channel, NByM

read = jax.jit(lambda tree: (dense := export.to_dense(tree), unpack_masks(dense, export.masks_of(tree))))
pack_jit = jax.jit(pack_masks)
bounded = settings(max_examples=20, deadline=None, derandomize=True)
SHAPES = [(7, 5), (3, 2, 9, 4), (0, 4)]
FORMS: dict[str, Callable] = {
    "bcoo": export.to_bcoo,
    "bcsr": export.to_bcsr,
    "bcsr by output": functools.partial(export.to_bcsr, by_output=True),
    "1:3": functools.partial(export.to_n_by_m, structure=NByM(1, 3, axis=-1)),
    "2:4": functools.partial(export.to_n_by_m, structure=NByM(2, 4)),
}


def bits_of(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")


def any_bits(shape: tuple, dtype: Any, seed: int) -> np.ndarray:
    """Every bit pattern there is: NaN payloads, infinities, subnormal numbers, both zeros."""
    dtype = np.dtype(dtype)
    return np.frombuffer(np.random.default_rng(seed).bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def thinned(mask: np.ndarray, n: int, m: int, axis: int) -> np.ndarray:
    """Keeps the first n of each group at most."""
    mask = np.moveaxis(mask.copy(), axis, 0)
    for start in range(0, len(mask), m):
        group = mask[start : start + m]
        group &= np.cumsum(group, axis=0) <= n
    return np.moveaxis(mask, 0, axis)


def draw(form: str, shape: tuple, seed: int, density: float = 0.5) -> np.ndarray:
    """A mask with a number of entries that depends on the shape only, so that little is compiled."""
    order = np.random.default_rng(seed).permutation(math.prod(shape)).reshape(shape)
    mask = order < density * order.size
    return thinned(mask, *{"1:3": (1, 3, -1), "2:4": (2, 4, -2)}[form]) if ":" in form else mask


@bounded
@given(
    st.sampled_from(list(FORMS)),
    st.sampled_from(SHAPES),
    st.sampled_from([np.float32, jnp.bfloat16, np.float16]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 2**31),
)
def test_every_form_gives_back_all_bits_and_the_mask(
    form: str, shape: tuple, dtype: Any, density: float, seed: int
) -> None:
    values, bias, mask = any_bits(shape, dtype, seed), any_bits((3,), dtype, seed), draw(form, shape, seed, density)
    params = {"w": jnp.asarray(values), "b": jnp.asarray(bias)}
    plain = {"w": mask.astype(np.uint8), "b": NOT_PRUNED}
    dense, masks = read(FORMS[form](params, pack_jit(params, plain)))
    assert (dense["w"].dtype, dense["w"].shape) == (dtype, shape)
    np.testing.assert_array_equal(bits_of(dense["w"]), np.where(mask, bits_of(values), 0))
    np.testing.assert_array_equal(bits_of(dense["b"]), bits_of(bias))
    assert masks["b"] == NOT_PRUNED
    np.testing.assert_array_equal(masks["w"], mask)


@bounded
@given(
    st.sampled_from([*SHAPES, (), (5,)]),
    st.sampled_from([np.float32, jnp.bfloat16, np.float16, np.float64, np.int8, jnp.float8_e4m3fn]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_a_file_gives_back_all_bits_and_the_masks(shape: tuple, dtype: Any, compress: bool, seed: int) -> None:
    values, mask = any_bits(shape, dtype, seed), draw("file", shape, seed)
    params = ({"w": np.where(mask, values, np.zeros((), values.dtype)), "b": values}, [jnp.arange(3), 2.5])
    masks = ({"w": mask.astype(np.uint8), "b": None}, [NOT_PRUNED, NOT_PRUNED])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.npz")
        assert export.save_sparse(path, params, masks, compress=compress) == path.stat().st_size
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), params)
        loaded, loaded_masks = export.load_sparse(str(path), like)
    assert loaded[0]["w"].dtype == dtype
    np.testing.assert_array_equal(bits_of(loaded[0]["w"]), np.where(mask, bits_of(values), 0))
    np.testing.assert_array_equal(bits_of(loaded[0]["b"]), bits_of(values))
    assert (loaded[1][0].tolist(), float(loaded[1][1])) == ([0, 1, 2], 2.5)
    np.testing.assert_array_equal(unpack_masks(params, loaded_masks)[0]["w"], mask)
    assert (loaded_masks[0]["b"], loaded_masks[1]) == (NOT_PRUNED, [NOT_PRUNED, NOT_PRUNED])


def test_bcoo_and_bcsr_are_jaxs_own_and_store_a_kept_zero() -> None:
    kernel = np.zeros((2, 3, 4), np.float32)
    kernel[0, 1, 2], mask = 5.0, np.zeros(kernel.shape, np.uint8)
    mask[0, 1, 1:], mask[1, 2, 0] = 1, 1  # 3 and 1 entries: the second batch of the BCSR is padded
    coo, csr = export.to_bcoo(kernel, mask), export.to_bcsr(kernel, mask)
    assert (type(coo), type(csr)) == (sparse.BCOO, sparse.BCSR)
    for form, stored in ((coo, (4,)), (csr, (2, 3))):
        assert (form.shape, form.data.shape) == (kernel.shape, stored)
        np.testing.assert_array_equal(form.todense(), kernel)
    assert csr.indptr.tolist() == [[0, 0, 3, 3], [0, 0, 0, 1]]
    assert export.to_bcsr(kernel, mask, by_output=True).matrix.indptr.tolist() == [0, 1, 2, 3, 4]
    assert export.to_dense(sparse.BCOO((jnp.ones(2), jnp.zeros((2, 1), int)), shape=(3,))).tolist() == [2, 0, 0]


def test_n_by_m_holds_values_and_places_and_counts_its_bytes() -> None:
    kernel = jnp.arange(1.0, 7.0)[:, None] * jnp.ones((1, 2))
    mask = jnp.array([[0, 1], [1, 0], [0, 0], [1, 0], [0, 0], [1, 1]], jnp.uint8)
    packed = export.to_n_by_m(kernel, mask, NByM(2, 4))
    assert packed.values.tolist() == [[[2, 1], [4, 0]], [[6, 6], [0, 0]]]
    assert packed.places.tolist() == [[[1, 0], [3, 4]], [[1, 1], [4, 4]]]
    params = {"w": jnp.ones((64, 32)), "b": jnp.ones(32)}
    masks = {"w": jnp.tile(jnp.array([[1], [0]], jnp.uint8), (32, 32)), "b": NOT_PRUNED}
    sizes = {form: export.nbytes(encode(params, masks)) - 128 for form, encode in FORMS.items() if form != "1:3"}
    assert sizes == {"bcoo": 1024 * 12, "bcsr": 1024 * 8 + 65 * 4, "bcsr by output": 1024 * 8 + 33 * 4, "2:4": 1024 * 5}


def test_a_function_of_n_by_m_arrays_is_serialized_and_called_again() -> None:
    packed = export.to_n_by_m(jnp.eye(8, 4), jnp.eye(8, 4, dtype=jnp.uint8), NByM(2, 4))
    written = jax.export.export(jax.jit(lambda array: (array.expand(), array)))(packed).serialize()
    expanded, again = jax.export.deserialize(written).call(packed)
    assert expanded.tolist() == jnp.eye(8, 4).tolist()
    assert (again.shape, again.structure) == ((8, 4), NByM(2, 4))


@pytest.mark.parametrize("leading", [(), (3,), (2, 5)], ids=str)
@pytest.mark.parametrize("form", [*FORMS, "dense", "1:32"])
def test_matmul_equals_the_dense_product(form: str, leading: tuple) -> None:
    rng = np.random.default_rng(0)
    kernel, mask = rng.standard_normal((40, 6)), draw(form if form in FORMS else "dense", (40, 6), 1)
    encode = FORMS.get(form, lambda params, masks: core.apply_masks(params, masks))
    if form == "1:32":  # sparse enough for gathering
        mask = thinned(mask, 1, 32, 0)
        mask[:, 0] = False  # the filler of its last, short group lies beyond the inputs
        encode = functools.partial(export.to_n_by_m, structure=NByM(1, 32))
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.03)):
        inputs, weights = jnp.asarray(rng.standard_normal((*leading, 40)), dtype), jnp.asarray(kernel, dtype)
        exact = np.asarray(inputs, float) @ np.where(mask, np.asarray(weights, float), 0)
        product = jax.jit(export.matmul)(inputs, encode(weights, mask.astype(np.uint8)))
        assert product.dtype == dtype
        np.testing.assert_allclose(np.asarray(product, float), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_matmul_of_an_empty_kernel_and_of_no_rows(form: str) -> None:
    product = export.matmul(jnp.ones((2, 8)), FORMS[form](jnp.ones((8, 6)), jnp.zeros((8, 6), jnp.uint8)))
    np.testing.assert_array_equal(product, np.zeros((2, 6)))
    assert export.matmul(jnp.ones((0, 8)), FORMS[form](jnp.ones((8, 6)), jnp.eye(8, 6, dtype=jnp.uint8))).shape == (
        0,
        6,
    )


def test_masks_of_a_plain_checkpoint() -> None:
    params = {
        "kernel": jnp.array([[0.0, -0.0, jnp.nan, 1e-45]]),
        "table": np.array([[1e-45, 2.0]], np.float32),
        "bias": jnp.zeros(2),
        "steps": jnp.zeros((2, 2), int),
    }
    masks = jax.jit(lambda params: unpack_masks(params, export.masks_of(params)))(params)
    masks |= {"table": unpack_masks(params, export.masks_of(params))["table"]}
    assert masks["kernel"].tolist() == [[0, 0, 1, 1]]
    assert masks["table"].tolist() == [[1, 1]]
    assert (masks["bias"], masks["steps"]) == (NOT_PRUNED, NOT_PRUNED)
    assert export.masks_of(params, core.kernels_only)["table"] == NOT_PRUNED


def test_exported_masks_are_those_of_a_state(tmp_path: Path) -> None:
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.5))
    start = {"w": jnp.arange(1.0, 65.0).reshape(8, 8), "b": jnp.ones(8)}
    state = jax.jit(updater.wrap_optax(optax.sgd(0.1)).init)(start)
    params = updater.pre_forward_update(start, state)
    export.save_sparse(tmp_path / "model.npz", params, state.masks)
    loaded, masks = export.load_sparse(tmp_path / "model.npz", params)
    for restored in (masks, export.masks_of(export.to_bcoo(loaded, masks)), export.masks_of(params)):
        jax.tree.map(np.testing.assert_array_equal, (loaded, restored), (params, state.masks))
        core.check_state(params, state._replace(masks=restored))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    export.save_sparse(tmp_path / "model.npz", *PAIR)
    return tmp_path / "model.npz"


PAIR = (
    {"w": jnp.arange(12.0).reshape(3, 4) * jnp.eye(3, 4), "b": jnp.ones(2)},
    {"w": jnp.eye(3, 4, dtype=jnp.uint8), "b": NOT_PRUNED},
)


@pytest.mark.parametrize("stray", [1e-30, float("nan"), -2.0])
def test_a_weight_outside_its_mask_is_not_left_out_of_a_file_in_silence(tmp_path: Path, stray: float) -> None:
    params, masks = PAIR
    with pytest.raises(ValueError, match=r"1 of the 9 pruned weights of 'w' are not 0, .*core.apply_masks"):
        export.save_sparse(tmp_path / "model.npz", params | {"w": params["w"].at[0, 1].set(stray)}, masks)
    assert not list(tmp_path.iterdir())
    export.save_sparse(tmp_path / "model.npz", params | {"w": params["w"].at[0, 1].set(-0.0)}, masks)


def test_no_file_is_overwritten_by_chance_or_left_half_done(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    with pytest.raises(FileExistsError, match=r"model.npz exists; choose another name, remove it, or pass overwrite"):
        export.save_sparse(saved, *PAIR)
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export.save_sparse(saved, *PAIR, overwrite=True)
    monkeypatch.undo()
    assert [file.name for file in saved.parent.iterdir()] == ["model.npz"]
    assert saved.read_bytes() == before
    assert export.save_sparse(saved, *PAIR, overwrite=True) == len(before)
    assert saved.read_bytes() == before, "the same parameters make the same bytes"


def test_a_damaged_file_is_refused_or_reads_as_written(saved: Path) -> None:
    whole = saved.read_bytes()
    broken = [whole[:end] for end in range(0, len(whole), 97)]
    broken += [whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :] for at in range(0, len(whole), 5)]
    refused = 0
    for content in broken:
        saved.write_bytes(content)
        try:
            params, masks = export.load_sparse(saved, PAIR[0])
        except ValueError as error:
            refused += "is damaged, or was not written by save_sparse" in str(error)
        else:  # dates, names in the local headers and the like
            assert (params["w"].tolist(), params["b"].tolist()) == ((PAIR[0]["w"] * PAIR[1]["w"]).tolist(), [1, 1])
            np.testing.assert_array_equal(unpack_masks(params, masks)["w"], PAIR[1]["w"])
    assert refused > len(broken) / 3


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.ones((3, 4))}, r"lacks the leaves \[\] and has \['b'\] beyond\. Pass parameters of"),
        ({**PAIR[0], "c": jnp.ones(1)}, r"lacks the leaves \['c'\] and has \[\]"),
        ({**PAIR[0], "w": jnp.ones((4, 3))}, r"leaf 'w' of .* is float32\[3, 4\]; the model has float32\[4, 3\]"),
        ({**PAIR[0], "b": jnp.ones(2, jnp.bfloat16)}, r"leaf 'b' of .* is float32\[2\]; the model has bfloat16\[2\]"),
    ],
)
def test_a_file_of_another_model_is_refused(saved: Path, like: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export.load_sparse(saved, like)


def test_files_of_another_kind_or_version_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_plugins.core.export.file_format.VERSION", 2)
    with pytest.raises(ValueError, match="has format version 1; this release reads version 2"):
        export.load_sparse(saved, PAIR[0])
    monkeypatch.undo()
    with np.load(saved) as archive:
        np.savez(saved, **{**archive, "1.values": archive["1.values"] + 1})
    with pytest.raises(ValueError, match="checksum of leaf 'w' is wrong"):
        export.load_sparse(saved, PAIR[0])
    np.savez(saved, header=np.array([{}], object))
    with pytest.raises(ValueError, match=r"damaged, or was not written by save_sparse .*where uint8.* belongs"):
        export.load_sparse(saved, PAIR[0])


ONES, FULL = jnp.ones((4, 4)), jnp.ones((4, 4), jnp.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: FORMS["2:4"]({"a": ONES}, {"a": FULL}),
            r"leaf 'a' .* keeps 4 entries of a group; .*allows 2\.",
        ),
        (lambda: export.to_n_by_m(ONES, FULL, NByM(1, 300)), "has groups of 300; NByMArray takes up to 255"),
        (lambda: FORMS["2:4"]({"b": ONES[0]}, {"b": FULL[0]}), r"needs axis -2, which leaf 'b' of shape \(4,\)"),
        (lambda: export.to_bcsr({"b": ONES[0]}, {"b": FULL[0]}), r"leaf 'b' has shape \(4,\); BCSR needs two"),
        (lambda: FORMS["bcsr by output"]({"b": ONES[0]}, {"b": FULL[0]}), "leaf 'b' has shape"),
        (lambda: jax.jit(export.to_bcoo)({"a": ONES}, {"a": FULL}), "leaf 'a' is traced.*outside jit"),
        (lambda: export.to_bcoo({"a": np.ones((4, 4))}, {"a": FULL}), "leaf 'a' is float64, which JAX would cut"),
        (lambda: export.to_bcoo({"a": ONES}, {"a": FULL[:2]}), r"mask of parameter 'a' has shape \(2, 4\)"),
        (lambda: export.to_bcoo({"a": ONES}, {"c": FULL}), "different tree structures"),
        (lambda: export.matmul(ONES, jnp.ones((4, 4, 4))), r"kernel of shape \(4, 4, 4\); matmul takes"),
        (lambda: export.matmul(ONES[:, 1:], export.to_bcoo(ONES, FULL)), r"inputs of shape \(4, 3\)"),
        (lambda: export.save_sparse("x", jax.random.key(0), None), "is a random key; .*key_data"),
        (lambda: export.save_sparse("x", {"a": "text"}, {"a": None}), "leaf 'a' has dtype <U4; .*leave it out"),
        (lambda: export.save_sparse("x", {"a/b": 1, "a": {"b": 2}}, {"a/b": None, "a": {"b": None}}), "path .'a/b'"),
    ],
)
def test_what_cannot_be_exported_is_refused(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_n_by_m_takes_no_other_structure() -> None:
    with pytest.raises(
        TypeError, match=r"structure is Channel\(axis=None, whole_heads=False\); give NByM\(n, m\), or use to_bcoo"
    ):
        export.to_n_by_m(ONES, FULL, Channel())


@pytest.mark.thorough
def test_layers_of_stacks_and_of_attention_are_exported_as_matrices() -> None:
    params = {
        "blocks": jax.random.normal(jax.random.key(0), (3, 4, 2, 8)),
        "query": jax.random.normal(jax.random.key(0), (8, 2, 3)),
        "b": jnp.ones(2),
    }
    rules = [
        ("blocks", core.Axes(stack=0, outputs=(1, 2), inputs=3)),
        ("query", core.Axes(inputs=0, outputs=(1, 2), heads=1)),
        ("b", core.Axes(elementwise=0)),
    ]
    layers = core.describe_layers(params, rules)
    updater = core.build_updater("static_sparse", structure="2:4", layers=layers)
    masks = core.unpack_masks(params, updater.init_state(params).masks)
    params = core.apply_masks(params, masks)
    matrices, kept = layers.to_matrices(params), layers.to_matrices(params, masks)
    assert [*matrices] == ["b", "blocks/0", "blocks/1", "blocks/2", "query"]
    x = jax.random.normal(jax.random.key(0), (5, 8))
    for exported in (export.to_bcsr(matrices, kept, by_output=True), export.to_n_by_m(matrices, kept, core.NByM(2, 4))):
        again = layers.from_matrices(params, export.to_dense(exported))
        jax.tree.map(np.testing.assert_array_equal, again, params)
        out = export.matmul(x, exported["blocks/1"]).reshape(5, 4, 2)
        np.testing.assert_allclose(out, np.einsum("bi,hdi->bhd", x, params["blocks"][1]), rtol=1e-4, atol=1e-5)
        out = export.matmul(x, exported["query"]).reshape(5, 2, 3)
        np.testing.assert_allclose(out, np.einsum("bi,ihd->bhd", x, params["query"]), rtol=1e-4, atol=1e-5)
