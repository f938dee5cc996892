"""The notebook runs from top to bottom, and says what it promises."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

NOTEBOOK = Path(__file__).parents[2] / "examples" / "really_smaller.ipynb"


def test_the_notebook_makes_a_network_smaller_and_trains_it_on() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "stored without outputs"
    scope: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):
        for cell in cells:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"]).replace("STEPS = 150", "STEPS = 60").replace("repeats=20", "repeats=1")
                exec(compile(source, str(NOTEBOOK), "exec"), scope)
        assert scope["small"].params["second"].shape == (128, 128)
        assert float(scope["difference"]) < 1e-4
        assert scope["accuracy"](scope["small"].apply, scope["smaller"]) > 0.8
        np.testing.assert_allclose(
            scope["network"](scope["again"], scope["images"]),
            scope["small"].apply(scope["smaller"], scope["images"]),
            atol=1e-4,
        )
