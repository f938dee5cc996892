"""Channels that leave, and networks that are narrow from the start, end to end at a size that learns little."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.channels.__main__ import run
from experiments.channels.settings import ChannelSettings
from experiments.channels.studies import GROUPS, NARROW, ONLY_AT, STUDIES, WIDTHS
from experiments.harness.csv_files import read_lines
from experiments.harness.tables.stored import read_study
from experiments.registry import LAYOUTS
from experiments.vision.task import narrow_model
from experiments.vision.vit import vit_small
from sparse_plugins import core
from sparse_plugins.core.layers.shrink import taken
from tests.quick import quick_jit

TINY = [
    "--data=digits",
    "--model=resnet8",
    "--width=4",
    "--image-size=8",
    "--steps=8",
    "--changes=2",
    "--batch-size=16",
]


def test_shrunk_and_narrow_networks_are_trained_timed_and_weighed(tmp_path: Path) -> None:
    flags = [*TINY, "--evaluations=1", "--sparsities", "0.5", "--only", GROUPS, NARROW, "--seed=0"]
    assert run(["resnet", *flags, f"--output={tmp_path}", "--name=x"]) == 0
    study = read_study(tmp_path / "x", LAYOUTS)
    shrunk, narrow = (row for row in study.rows if row.is_last)
    assert (shrunk.cell, shrunk.target, narrow.cell, narrow.target) == (GROUPS, 0.5, NARROW, 0.5)
    assert shrunk.kept == pytest.approx(narrow.kept, abs=0.05)
    assert 0.2 < narrow.kept < 0.35
    assert shrunk.kilobytes == pytest.approx(narrow.kilobytes, rel=0.02)
    assert all(0 < share < 3 for share in (shrunk.cpu_share, narrow.cpu_share, shrunk.wall_share))
    assert {"costs.png", "curves.png", "results.md"} <= {file.name for file in (tmp_path / "x").iterdir()}
    assert "cpu time of a step, of dense's" in (tmp_path / "x" / "results.md").read_text()
    assert [line["target"] for line in read_lines(tmp_path / "x" / "timing.csv")] == ["0.5", "0.5"]


def test_a_federated_run_shrinks_and_is_timed_and_weighed_by_round(tmp_path: Path) -> None:
    _, rolling, _ = WIDTHS
    flags = ["--steps=4", "--changes=1", "--change-from=0.25", "--change-until=0.5", "--evaluations=1"]
    flags += ["--writers=3", "--clients-per-round=2", "--client-steps=1", "--batch-size=4"]
    only = ["--sparsities", "0.5", "--only", GROUPS, rolling, "--seed=0"]
    assert run(["federated", *flags, *only, f"--output={tmp_path}", "--name=x"]) == 0
    study = read_study(tmp_path / "x", LAYOUTS)
    shrunk, wide = (row for row in study.rows if row.is_last)
    assert (shrunk.cell, wide.cell, shrunk.target, wide.target) == (GROUPS, rolling, 0.5, 0.5)
    assert shrunk.kept == pytest.approx(0.26, abs=0.01)
    assert shrunk.up_share == pytest.approx(0.26, abs=0.01)
    assert wide.up_share == pytest.approx(shrunk.up_share, abs=0.01)
    assert wide.kept == pytest.approx(1, abs=0.01)
    assert wide.run_share < 0.3 < shrunk.run_share < 0.8
    assert 0 < shrunk.cpu_share < 3
    text = (tmp_path / "x" / "results.md").read_text()
    assert "bytes up, of dense's" in text
    assert "Times are of a round after the last mask change" in text


def test_every_cell_stands_at_every_sparsity_that_it_can_have() -> None:
    for name, question in STUDIES.items():
        for preset in question.presets.values():
            settings = ChannelSettings(name="x", **preset)
            cells = settings.plan_of(settings.chosen(question.variants(settings)), "", lambda cell: None).cells
            once = [cell for cell in question.cells if cell in ONLY_AT]
            assert len(cells) == 1 + 3 * (len(question.cells) - 1 - len(once)) + len(once), name
    with pytest.raises(ValueError, match="--sparsities must be between 0 and 1"):
        ChannelSettings(name="x", sparsities=(1.0,))


def test_a_narrow_model_has_the_shapes_of_what_is_left_of_a_wide_one() -> None:
    images = np.zeros((2, 8, 8, 1), np.float32)
    whole, narrow = vit_small(5), narrow_model("vit_small", 16, 5, 0.5)
    params, small = (nn.unbox(quick_jit(model.init)(jax.random.key(0), images)) for model in (whole, narrow))
    graph = core.channel_graph(whole.apply, params, images)
    halves = {name: np.arange(group.size // 2) for name, group in graph.groups.items()}
    left = taken(graph, halves, params)
    assert jax.tree.map(jnp.shape, left) == jax.tree.map(jnp.shape, small)
    with pytest.raises(ValueError, match="there is no narrow resnet50"):
        narrow_model("resnet50", 16, 5, 0.5)
