"""Image classifiers: their sizes and parts, their data, and the studies end to end at a size that learns little."""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.image import imread

from experiments.common.supervised import data as batches
from experiments.common.supervised.settings import SupervisedSettings
from experiments.harness.command import main
from experiments.harness.layout import Measure, Record, last
from experiments.harness.recorder import Recorder
from experiments.harness.settings import flag
from experiments.harness.study import Question, Study
from experiments.harness.tables.stored import read_study
from experiments.harness.variants import layout, plan_of
from experiments.registry import LAYOUTS
from experiments.vision import data
from experiments.vision.__main__ import run as run_vision
from experiments.vision.resnet import BasicBlock, ResNet, cifar_resnet, resnet50
from experiments.vision.studies import STUDIES
from experiments.vision.task import MODELS, VisionSettings, prunable
from experiments.vision.vit import ViT, vit_b16, vit_small
from sparse_plugins.core.checks import check_targets

IMAGE = jnp.zeros((1, 224, 224, 3))
Sources = list[dict[str, Any]]


def count(model: nn.Module, *inputs: jax.Array) -> int:
    variables = jax.eval_shape(lambda key: model.init(key, *inputs), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_the_models_have_the_published_numbers_of_parameters() -> None:
    assert count(resnet50(1000), IMAGE) == 25_557_032
    assert count(vit_b16(1000), IMAGE) == 86_567_656
    assert count(cifar_resnet(20, 16, 10), jnp.zeros((1, 32, 32, 3))) == 269_722


@pytest.mark.parametrize("model", [cifar_resnet(8, 4, 5), ViT(4, 8, 1, 2, 16, 5)], ids=["resnet8", "vit"])
def test_every_axis_of_every_parameter_has_a_name_and_logits_have_a_class_each(model: nn.Module) -> None:
    images = jnp.zeros((3, 8, 8, 1))
    variables = jax.eval_shape(lambda key: model.init(key, images), jax.random.key(0))
    boxed = jax.tree.leaves(variables["params"], is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in boxed)
    assert all(len(leaf.names) == leaf.value.ndim for leaf in boxed)
    logits = jax.eval_shape(model.apply, nn.unbox(variables), images)
    assert (logits.shape, logits.dtype) == ((3, 5), jnp.float32)


def test_models_say_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="depth is 21; these networks have 8, 14, 20"):
        cifar_resnet(21, 16, 10)
    with pytest.raises(ValueError, match="images are 6 x 8; choose sides that are multiples of 4"):
        vit_small(10).init(jax.random.key(0), jnp.zeros((1, 6, 8, 1)))


def test_a_block_that_changes_shape_starts_as_the_shortcut_without_parameters() -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 2), np.float32)
    block = BasicBlock(features=4, strides=2)
    out, _ = jax.jit(functools.partial(block.init_with_output, train=False))(jax.random.key(0), x)
    expected = np.zeros((2, 2, 2, 4), np.float32)
    expected[..., 1:3] = np.maximum(x[:, ::2, ::2], 0)
    np.testing.assert_array_equal(out, expected)


def test_batch_norms_learn_their_statistics_while_training_and_use_them_after() -> None:
    model = ResNet(BasicBlock, (1,), 4, False, 5)
    images = np.random.default_rng(0).standard_normal((6, 8, 8, 1), np.float32)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), images))
    apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
    _, renewed = apply(variables, images, train=True, mutable="batch_stats")
    kernel = np.asarray(variables["params"]["stem"]["kernel"])
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # [6, 8, 8, 1, 3, 3]
    out = np.einsum("nhwcij,ijco->nhwo", windows, kernel)
    norm = renewed["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * out.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * out.var(axis=(0, 1, 2)), rtol=1e-4)
    trained = {**variables, **renewed}
    others = np.concatenate([images[:1], 9 * images[1:]])
    np.testing.assert_allclose(apply(trained, others)[0], apply(trained, images)[0], rtol=1e-4, atol=1e-5)


def test_every_example_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    drawn = batches.shuffled_batches({"x": np.arange(12)}, 4, seed=1)
    epochs = [np.concatenate([next(drawn)["x"] for _ in range(3)]).tolist() for _ in range(2)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    again = batches.shuffled_batches({"x": np.arange(12)}, 4, seed=1)
    assert next(again)["x"].tolist() == epochs[0][:4]
    with pytest.raises(ValueError, match="a batch takes 13 examples and there are 12"):
        next(batches.shuffled_batches({"x": np.arange(12)}, 13, seed=1))


def test_digits_and_strokes_are_what_they_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "STROKES_WRITERS", 6)
    for name, size, classes in (("digits", 8, 10), ("strokes", 14, 62)):
        images = data.load(name, size)
        train = next(images.train(256, 0))
        assert images.shape == train["image"].shape[1:] == (size, size, 1)
        assert images.num_classes == classes > train["label"].max() > classes // 2
        assert abs(train["image"].mean()) < 0.1
        assert abs(train["image"].std() - 1) < 0.1
        first = next(iter(images.test()))
        assert set(first) == {"image", "label", "weight"}
        assert next(images.train(4, 1))["label"].tolist() != train["label"][:4].tolist()
    assert "6 writers and 1 unseen ones" in images.about
    with pytest.raises(ValueError, match="allowed are digits, strokes, imagenet2012"):
        data.load("mnist", 28)


@pytest.fixture
def photographs() -> Sources:
    """Seven pictures of several shapes, each of one colour."""
    shapes = [(20, 30), (40, 16), (17, 17), (9, 50), (25, 25), (64, 32), (12, 13)]
    return [{"image": np.full((*shape, 3), 30 * i, np.uint8), "label": i} for i, shape in enumerate(shapes)]


def test_pictures_are_read_by_seed_in_batches_of_one_shape(photographs: Sources) -> None:
    images = data.from_sources(photographs, photographs, 8, 7, "seven pictures")
    drawn = [next(images.train(5, seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0]["image"], drawn[1]["image"])
    assert drawn[0]["label"].tolist() == drawn[1]["label"].tolist() != drawn[2]["label"].tolist()
    shade = 30 * drawn[0]["label"] / 255
    np.testing.assert_allclose(drawn[0]["image"][:, 3, 3, 0], (shade - 0.485) / 0.229, rtol=1e-5)
    (test,) = images.test()
    assert test["image"].shape == (data.TEST_BATCH, 8, 8, 3)
    assert (test["weight"].sum(), test["label"][:7].tolist()) == (7, list(range(7)))


def test_crops_keep_within_the_picture_and_the_middle_is_not_scaled_where_it_fits() -> None:
    image = np.random.default_rng(0).integers(1, 255, (64, 80, 3), np.uint8)
    np.testing.assert_array_equal(data.centre_crop(image, 56), image[4:60, 12:68])
    crops = [data.random_crop(image, 16, np.random.default_rng(seed)) for seed in range(20)]
    assert all(crop.shape == (16, 16, 3) and crop.min() > 0 for crop in crops)
    assert len({crop.tobytes() for crop in crops}) == 20


def test_a_data_set_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, photographs: Sources) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(batches.DataUnavailableError, match="pip install tensorflow-datasets array-record"):
        data.load("imagenet2012", 224)
    assert run_vision(["ste", "--preset=paper", "--data=imagenet2012"]) == 2

    def builder(name: str, file_format: str) -> Any:
        assert (name, file_format) == ("imagenet2012", "array_record")
        ready = {"is_prepared": lambda: prepared, "data_dir": "/data", "as_data_source": lambda split: photographs}
        return SimpleNamespace(**ready)

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(builder=builder))
    prepared = False
    with pytest.raises(batches.DataUnavailableError, match=r"not prepared in /data\. Prepare it with: tfds build"):
        data.load("imagenet2012", 224)
    prepared = True
    images = data.load("imagenet2012", 16)
    assert next(images.train(2, 0))["image"].shape == (2, 16, 16, 3)


@functools.cache
def shapes_of(name: str, side: int, channels: int, width: int) -> Any:
    model = MODELS[name](width, 62)
    init = lambda key: nn.unbox(model.init(key, jnp.zeros((1, side, side, channels))))  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_of_every_preset_fits_its_model(name: str) -> None:
    for preset in STUDIES[name].presets.values():
        settings = VisionSettings(name="study", **preset)
        channels = 3 if settings.data == "imagenet2012" else 1
        shapes = shapes_of(settings.model, settings.image_size, channels, settings.width)
        for cell, keywords in STUDIES[name].variants(settings, shapes).items():
            updater = settings.updater(keywords, prunable)
            assert updater.prunes == (cell != "dense")
            if updater.prunes:
                check_targets(updater, shapes)


def test_the_paper_presets_have_the_steps_at_which_masks_changed_there() -> None:
    resnet, vit = (VisionSettings(name="x", **STUDIES[name].presets["paper"]) for name in ("resnet", "ste"))
    schedules = [settings.updater({"algorithm": "magnitude"}, prunable).scheduler for settings in (resnet, vit)]
    found = [(schedule.update_start_step, schedule.update_end_step, schedule.update_freq) for schedule in schedules]
    assert found == [(10_000, 25_000, 1000), (10_000, 20_000, 1000)]
    assert (resnet.clip, vit.clip) == (0.0, 1.0)


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 5.0), (1.0, 1.0), (9.0, 5.0)])
def test_gradients_are_clipped_by_their_norm_or_not_at_all(clip: float, norm: float) -> None:
    flags = {"optimizer": "sgd", "learning_rate": 1.0, "warmup": 0.0, "weight_decay": 0.0, "clip": clip}
    tx = VisionSettings(name="x", **{**STUDIES["resnet"].presets["short"], **flags}).transformation()
    gradients = {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}
    step, _ = tx.update(gradients, tx.init(gradients), gradients)
    assert float(optax.tree.norm(step)) == pytest.approx(norm)


QUICK = ["--data=digits", "--image-size=8", "--steps=6", "--batch-size=16", "--evaluations=2", "--change-until=0.5"]
QUICK += ["--changes=2", "--seeds", "0", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells of residual networks and two seeds."""
    output = tmp_path_factory.mktemp("runs")
    small = ["--model=resnet8", "--width=4", f"--output={output}", "--name=first"]
    assert run_vision(["resnet", "--only", "dense", "static_sparse", *small, *QUICK]) == 0
    return output / "first"


def test_a_study_leaves_its_files_and_is_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["churn.png", "config.json", "curves.png", "layers.csv", "layers.png", "results.csv", "results.md", "runs"]
    files += ["sparsity.png", "timing.csv"]
    assert sorted(file.name for file in folder.iterdir()) == files
    record = json.loads((folder / "config.json").read_text())
    assert (record["study"], record["settings"]["steps"], record["settings"]["learning_rate"]) == ("resnet", 6, 0.3)
    assert record["command"].startswith("python -m experiments.vision resnet --only dense static_sparse ")
    assert {"flax", "jax", "optax"} <= {name for name, version in record["packages"].items() if version}
    text = (folder / "results.md").read_text()
    assert "Predicted before: the published order" in text
    assert "resnet8 of width 4 on scikit-learn's digits (real handwriting, 10 classes) at 8 x 8 pixels, 1,348" in text
    assert "masks change from step 2 to 3" in text
    assert run_vision(["resnet", "--data=digits", "--model=resnet8", f"--output={folder.parent}", "--name=first"]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_cells_share_their_start_and_end_as_sparse_as_they_are_meant_to_be(folder: Path) -> None:
    rows = {(row.cell, row.seed, row.step): row for row in read_study(folder, LAYOUTS).rows}
    assert list(rows) == [
        (cell, seed, step) for cell in ("dense", "static_sparse") for seed in (0, 1) for step in (0, 3, 6)
    ]
    starts = {seed: rows["dense", seed, 0].loss for seed in (0, 1)}
    assert starts[0] != starts[1]
    assert all(rows["static_sparse", seed, 0].loss != starts[seed] for seed in (0, 1))  # sparse from its first step on
    for (cell, _, step), row in rows.items():
        assert row.sparsity == pytest.approx(0.8 if cell == "static_sparse" else 0.0, abs=2e-3)
        assert (row.training_loss is None) == (step == 0)
        assert row.loss > 0
        assert 0 <= row.score <= 1
        assert row.is_last == (step == 6)


def test_spectra_are_measured_of_every_kernel_that_may_be_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "vit_small", lambda width, classes: ViT(4, 8, 1, 2, 16, classes))
    command = ["distributions", "--only", "static erk", f"--output={tmp_path}", "--name=x", *QUICK]
    assert run_vision(command) == 0
    found = read_study(tmp_path / "x", LAYOUTS).measurements
    layers = ["attention/key", "attention/out", "attention/query", "attention/value", "mlp_in", "mlp_out"]
    assert {line.item for line in found} == {"embedding", "head", *(f"block0/{layer}" for layer in layers)}
    assert {line.quantity for line in found} == {"stable rank", "effective rank", "kept"}
    assert {line.seed for line in found} == {0, 1}
    assert all(1 <= line.value <= 10 for line in found if line.quantity != "kept")
    assert imread(tmp_path / "x" / "measurements.png").shape[0] > 600
    assert "## stable rank" in (tmp_path / "x" / "results.md").read_text()


# The harness itself, without a model.


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnySettings(SupervisedSettings):
    data: str = flag("none", default="")
    model: str = flag("none", default="")


def _layout(record: Record) -> Any:
    return layout(record, Measure("accuracy, %", last("score"), 100))


def run_harness(ends: dict[tuple[str, int], float], arguments: list[str]) -> int:
    """A study of which a run ends with a number, and fails where there is none."""
    cells = {name: {"algorithm": name} for name in ("dense", "good", "bad")}

    def prepare(name: str) -> Any:
        def run(recorder: Recorder) -> None:
            recorder.add(0, loss=1.0, score=0.0, sparsity=0.0)
            recorder.add(9, loss=1.0, score=ends[name, recorder.run.seed] / 100, sparsity=0.5, is_last=1)

        return run

    question = Question("A study", "nothing.", lambda settings, shapes: cells, {"short": {}, "long": {"seeds": (0, 1)}})
    task = lambda settings, question: plan_of(settings, settings.chosen(cells), "", prepare)  # noqa: E731
    study = Study("vision", "", _layout, (), {"one": question})
    return main(study, AnySettings, task, arguments)


def test_a_run_that_fails_costs_no_other_and_stays_visible_and_resuming_trains_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {("dense", 0): 1.0, ("dense", 1): 3.0, ("good", 0): 2.0, ("good", 1): 2.0, ("bad", 1): 0.5}
    command = ["one", "--preset=long", f"--output={tmp_path}", "--name=x"]
    assert run_harness(ends, command) == 1
    found = {outcome.cell.name: outcome for outcome in read_study(tmp_path / "x", LAYOUTS).outcomes()}
    assert {name: (len(outcome.finished), len(outcome.failed)) for name, outcome in found.items()} == {
        "dense": (2, 0),
        "good": (2, 0),
        "bad": (1, 1),
    }
    text = (tmp_path / "x" / "results.md").read_text()
    assert "2.00 ± 1.41" in text
    assert "- bad at 80 %, seed 0, at step 0: KeyError: ('bad', 0)" in text
    before = (tmp_path / "x" / "runs" / "good" / "seed-1" / "timing.csv").read_text()
    stopped = tmp_path / "x" / "runs" / "dense" / "seed-0"  # in the middle of a line
    (stopped / "summary.json").unlink()
    (stopped / "results.csv").write_bytes((stopped / "results.csv").read_bytes()[:-9])
    assert run_harness({**ends, ("dense", 0): 5.0}, ["one", "--preset=long", "--resume", str(tmp_path / "x")]) == 1
    assert (tmp_path / "x" / "runs" / "good" / "seed-1" / "timing.csv").read_text() == before
    assert "4.00 ± 1.41" in (tmp_path / "x" / "results.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "best"], "--only names best; this study has dense, good, bad"),
        (["--seeds", "1", "1"], "--seeds takes one value or more, each once"),
        (["--sparsity=1.5"], "--sparsity must be in"),
        (["--steps=0"], "--steps must be 1 or more"),
        (["--clip=-1"], "--clip must be above 0, or 0 to leave gradients as they are"),
        (["--change-from=0.9"], "choose 0 <= --change-from <= --change-until < 1"),
        (["--preset=huge"], "one has no preset 'huge'; it has short, long"),
        (["--resume=/nowhere"], "/nowhere holds no study"),
    ],
)
def test_a_command_that_makes_no_sense_says_why(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = run_harness({}, ["one", *([] if "resume" in flags[0] else [f"--output={tmp_path}"]), *flags])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_cell_that_could_not_train_is_refused_before_another_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model=resnet8", "--only", "dense", "rigl", f"--output={tmp_path}", "--name=x"]
    assert run_vision(["resnet", *QUICK, *flags]) == 2
    assert "RigL changes masks at every optimizer step" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_lists_the_studies_and_explains_a_studys_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, shown in ((["--help"], "structures-vit"), (["memory", "--help"], "--image-size")):
        with pytest.raises(SystemExit) as stop:
            run_vision(arguments)
        assert stop.value.code == 0
        assert shown in capsys.readouterr().out
