"""Files of arrays as fuzz targets: those of `save_sparse` and checkpoints, which share what reads them.

A fuzzer can't guess checksums, but an attacker computes them. So each input is also read after `repaired` has put
those of zip and of the header into it.
"""

import io
import json
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparse_plugins.checkpoints import CheckpointMismatchError, Checkpoints
from sparse_plugins.core.export.file_format import load_sparse, save_sparse
from sparse_plugins.core.masks import NOT_PRUNED

# The value of a dtype that JAX has switched off stays with NumPy, which is faster than a device.
LIKE = {
    "b": np.arange(3.0),
    "empty": np.zeros((0, 2)),
    "n": np.float64(7),
    "w": np.asfortranarray(np.arange(40.0).reshape(5, 8)),
}
MASKS = {**dict.fromkeys(LIKE, NOT_PRUNED), "w": (np.arange(40).reshape(5, 8) % 13 == 5).astype(np.uint8)}


def corpus() -> Iterator[bytes]:
    """Valid files: sparse ones as they are and compressed, and a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.npz")
        for compress in (False, True):
            save_sparse(path, {**LIKE, "w": LIKE["w"] * MASKS["w"]}, MASKS, compress=compress, overwrite=True)
            yield path.read_bytes()
        Checkpoints(folder).save(3, LIKE, extra={"curve": [1.5]})
        yield Path(folder, "3.npz").read_bytes()


def repaired(data: bytes) -> bytes:
    """The same members with the checksums that fit; what is no zip file at all stays as it is."""
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist()[:32]:
                with archive.open(info) as member:
                    member._expected_crc = None  # type: ignore[attr-defined]
                    members[info.filename] = member.read(1 << 16)
        header = json.loads(members["header.npy"][128:])
        for place, entry in enumerate(header["leaves"]):
            parts = (members.get(f"{place}.{part}.npy", b"")[128:] for part in ("mask", "values"))
            entry["crc32"] = zlib.crc32(b"".join(parts))
        np.lib.format.write_array(file := io.BytesIO(), np.frombuffer(json.dumps(header).encode(), np.uint8))
        members["header.npy"] = file.getvalue()
    except Exception:  # whatever the libraries raise at bytes that are no such file
        if not members:
            return data
    with zipfile.ZipFile(whole := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return whole.getvalue()


def check(data: bytes) -> None:
    """Reads an input as it is and repaired, as a sparse file and as a checkpoint.

    Raises:
        AssertionError: If something was read that is not of the model, or an error does not name the file.
        Exception: Anything but the errors that are promised: a finding.
    """
    for content in (data, repaired(data)):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.npz").write_bytes(content)
            try:
                params, masks = load_sparse(Path(folder, "model.npz"), LIKE)
            except ValueError as error:
                if type(error) is not ValueError or "model.npz" not in str(error):
                    raise AssertionError(f"an error that does not name the file: {error!r}") from error
            else:
                check_like_model(params)
                is_kept = np.unpackbits(np.asarray(masks["w"]), count=40, bitorder="little").reshape(5, 8)
                assert not np.frombuffer(params["w"][is_kept == 0].tobytes(), np.uint8).any()
            Path(folder, "model.npz").rename(Path(folder, "3.npz"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # says that it is damaged
                try:
                    found = Checkpoints(folder).restore(LIKE)
                except CheckpointMismatchError:
                    continue
            if found is not None:
                check_like_model(found.tree)


def check_like_model(tree: Any) -> None:
    """Leaves have shapes and dtypes of the model."""
    shapes_and_dtypes = lambda leaves: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), leaves)  # noqa: E731
    assert shapes_and_dtypes(tree) == shapes_and_dtypes(LIKE)
