"""The programs of examples/ run with few steps, end as sparse as they say, and are short."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from sparse_plugins import core

FOLDER = Path(__file__).parents[2] / "examples"
LENGTHS = {  # enough steps for the last mask update, and the sparsity at the end
    "optax_digits": (20, 0.9),
    "flax_nnx": (12, 0.8),
    "equinox_mlp": (4, 0.475),  # half of all but the last layer
    "haiku_dqn": (2_000, 0.9),
    "fedjax_fedavg": (5, 0.8),
    "flower_fedavg": (3, 0.9),
    "dopamine_cartpole": (300, 0.9),
    "ppo_gymnax": (8_192, 0.8),
}


def load(name: str) -> Callable[..., Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"))["main"]


def test_there_is_a_row_for_every_example() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(LENGTHS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.xdist_group("dopamine")) if "dopamine" in n else n for n in LENGTHS],
)
def test_an_example_ends_at_its_sparsity(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps, sparsity = LENGTHS[name]
    with jax.numpy_rank_promotion("allow"):  # as users have it
        params = load(name)(steps)
    summary = core.summarize_sparsity(params)
    assert float(summary["_total_sparsity"]) == pytest.approx(sparsity, abs=0.01)


@pytest.mark.parametrize("name", LENGTHS)
def test_an_example_is_short_and_says_what_to_install(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert 40 <= len(text.splitlines()) <= 80
    assert "    pip install " in text
    assert f"    python examples/{name}.py" in text
    assert "# the line that changes" in text
