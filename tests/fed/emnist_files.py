"""A small federated EMNIST in the format of the real one."""

from pathlib import Path
from typing import Any

import fedjax
import numpy as np

WRITERS = (b"0123456789abcdef:f0000_14", b"0123456789abcdef:f2100_07", b"0123456789abcdef:f4099_01")


def write_emnist(folder: Path, prefix: str = "federated_emnist_", images: int = 6) -> dict[str, Any]:
    """Writes the two sqlite files with FedJAX's own builder and returns what is in them, by split and writer."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for split in ("train", "test"):
        content[split] = {
            writer: {
                "pixels": rng.random((images + i, 28, 28), np.float32),
                "label": rng.integers(0, 62, images + i, np.int32),
            }
            for i, writer in enumerate(WRITERS)
        }
        with fedjax.SQLiteFederatedDataBuilder(str(folder / f"{prefix}{split}.sqlite")) as builder:
            builder.add_many(content[split].items())
    return content
