"""Keras 3 through the same contracts and through `model.fit`, in a process of its own: see `keras_library`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.contracts import CONTRACTS

ROOT = Path(__file__).parents[2]
RUN = """
import runpy, sys
sys.modules["tensorflow"] = None  # as where it is not installed
runpy.run_module("tests.integration.keras_library", run_name="__main__", alter_sys=True)
"""
OF_KERAS_ALONE = [
    "the_code_of_the_page_runs_without_tensorflow",
    "fit_is_sparse_at_every_step_and_goes_on_bit_for_bit",
    "mistakes_are_named",
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("keras")
    settings = {"KERAS_BACKEND": "jax", "KERAS_HOME": str(folder), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-c", RUN, str(folder / "outcomes.json")]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **settings}, timeout=500)
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("check", [*CONTRACTS, *OF_KERAS_ALONE])
def test_keras_keeps_the_contract(check: str, outcomes: dict[str, str]) -> None:
    assert outcomes[check] == ""


def test_every_check_of_keras_is_reported(outcomes: dict[str, str]) -> None:
    assert set(outcomes) == {*CONTRACTS, *OF_KERAS_ALONE}
