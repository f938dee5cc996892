"""Keras 3 through the same contracts and through `model.fit`, in a process of its own: see `keras_library`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.contracts import CONTRACTS
from tests.quick import FLAGS

ROOT = Path(__file__).parents[2]
RUN = """
import runpy, sys
sys.modules["tensorflow"] = None  # as where it is not installed
runpy.run_module("tests.integration.keras_library", run_name="__main__", alter_sys=True)
"""
OF_KERAS_ALONE = [
    "the_code_of_the_page_runs_without_tensorflow",
    "the_example_of_the_docstring_runs",
    "mistakes_are_named",
    "layers_are_told_by_their_classes_as_by_the_trace",
    "attention_is_pruned_as_its_kernels_flattened",
    # of the optimizer for `model.compile`
    "fit_is_sparse_at_every_step_and_goes_on_bit_for_bit",
    "mixed_precision_is_sparse_at_every_step",
    "a_step_that_overflows_changes_no_weight_and_no_mask",
    "callbacks_set_the_learning_rate",
    "training_goes_on_bit_for_bit_from_every_file",
    "a_registered_subclass_is_loaded_with_its_model",
    "a_loop_of_its_own_takes_the_same_steps",
    "scales_of_float8_layers_are_overwritten",
    "axes_are_read_from_the_layers_of_a_model",
    "a_callback_that_moves_weights_off_their_masks_is_told_of_once",
    "a_file_of_another_algorithm_or_sparsity_is_refused_unless_that_is_meant",
    "mistakes_with_the_optimizer_are_named",
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("keras")
    settings = {"KERAS_BACKEND": "jax", "KERAS_HOME": str(folder), "XLA_FLAGS": FLAGS}
    command = [sys.executable, "-c", RUN, str(folder / "outcomes.json")]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **settings}, timeout=500)
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("check", [*CONTRACTS, *OF_KERAS_ALONE])
def test_keras_keeps_the_contract(check: str, outcomes: dict[str, str]) -> None:
    assert outcomes[check] == ""


def test_every_check_of_keras_is_reported(outcomes: dict[str, str]) -> None:
    assert set(outcomes) == {*CONTRACTS, *OF_KERAS_ALONE}
