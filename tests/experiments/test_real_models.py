"""The table of published models is what their command makes of them."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from experiments.real_models import __main__ as real_models
from experiments.real_models import sequences


@pytest.fixture(autouse=True)
def _as_they_are_written() -> Iterator[None]:
    """Biases are added without a word about axes."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_the_page_has_the_table_and_every_axis_that_inputs_meet_is_known() -> None:
    text = real_models.PAGE.read_text()
    assert real_models.filled(text) == text, "run python -m experiments.real_models"


def test_scanned_blocks_are_pruned_as_the_plan_says() -> None:
    """What the command does with all of them."""
    (gemma,) = [model for model in sequences.models() if model.name.startswith("Gemma")]
    kept, size = map(int, real_models.prune(gemma).split(" of "))
    assert real_models.line(gemma)[-1] == f"{kept} of {size}"
    assert np.isclose(kept / size, 0.1, atol=1e-3)
