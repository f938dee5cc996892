"""Folders, rows and masks of runs: nothing is overwritten, and what a stopped process leaves can be read."""

import dataclasses
import functools
import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness import csv_files as rows
from experiments.harness import files
from experiments.harness.cells import Cell, Run
from experiments.harness.layers import Mask, from_json, lines, masks_of, masks_of_seeds, to_json
from experiments.harness.layout import Row, layout_of, name_of
from experiments.harness.recorder import MEASUREMENTS, Recorder, has_ended
from experiments.harness.surroundings import surroundings
from experiments.registry import LAYOUTS
from sparse_plugins import core

RECORD = {"study": "rl", "title": "", "prediction": "", "cells": [["good"]]}
RECORD |= {"settings": {"only": [], "seeds": [0], "sparsity": 0.5}, "command": "python -m experiments.structures rl"}


RESULTS = Path(__file__).parents[2] / "experiments" / "results"
COLUMNS = {"name": str, "step": int, "score": float, "failure": str}
LAYOUT = layout_of(RECORD, LAYOUTS)
GOOD = Run(Cell("", "good", 0.5), 0)


def line(name: str, step: int, score: float | None = None, failure: str = "") -> Row:
    return Row(name=name, step=step, score=score, failure=failure)


def append(path: Path, row: Row) -> None:
    rows.append_lines(path, list(COLUMNS), [vars(row)])


def read(path: Path) -> list[Row]:
    return rows.read_rows(path, COLUMNS, ("name", "step"))


@dataclasses.dataclass(frozen=True)
class Settings:
    name: str
    steps: tuple[int, ...]
    rate: float
    is_long: bool = False
    limit: int | None = None


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    written = [line("a", 1, 0.1 + 0.2), line("b", 2), line("c", 3, None, 'broke, with "quotes"\nand a line')]
    for row in written:
        append(tmp_path / "rows.csv", row)
    assert read(tmp_path / "rows.csv") == written
    assert read(tmp_path / "none.csv") == []
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"], "no half file is left"


def test_a_folder_is_made_once_and_knows_its_settings(tmp_path: Path) -> None:
    record = {"settings": {"name": "x", "steps": [1, 2], "rate": 3}, "packages": {"numpy": "1.0"}}
    folder = files.create_folder(tmp_path / "runs" / "x", record)
    assert json.loads((folder / "config.json").read_text()) == record
    assert files.read_config(folder, Settings) == Settings("x", (1, 2), 3)
    assert files.changed_packages(folder, ["numpy"]) == [f"numpy 1.0 is now {np.__version__}"]
    with pytest.raises(FileExistsError, match="is never overwritten"):
        files.create_folder(folder, record)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["x"]


def test_a_half_line_is_left_out_and_the_next_one_follows_the_whole_ones(tmp_path: Path) -> None:
    path, written = tmp_path / "rows.csv", [line("a", 1, 0.5), line("bcd", 22, 0.25)]
    for row in written:
        append(path, row)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        left = read(path)
        assert left == written[: max(whole[:cut].count(b"\n") - 1, 0)]
        append(path, line("e", 3))
        assert read(path) == [*left, line("e", 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,step\na,1\nb,x\n", "line 3: invalid literal for int"),
        (b"name,step\na,1\nb\n", "line 3: it has 1 columns where the first line has 2"),
        (b"name,step\na,1,2\n", "line 2: it has 3 columns where the first line has 2"),
        (b"name,step\na,1\n\n", "line 3: it has 0 columns where the first line has 2"),
        (b'name,step\n"a,1\n', "line 2: unexpected end of data"),
        (b'name,step\n"a"b,1\n', "line 2: "),
        (b"name,step\na,1\n\xff,1\n", "line 3: 'utf-8' codec can't decode"),
        (b"name,step\n" + b"a" * 200_000 + b",1\n", "line 2: field larger than field limit"),
        (b"name,step\na,\n", "line 2: it has no step"),
    ],
)
def test_a_damaged_line_is_told_with_its_number(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows\.csv is damaged in {message}.*Copy it back"):
        read(tmp_path / "rows.csv")


def test_a_line_cut_within_a_letter_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("name,step\na,1\nü".encode()[:-1])
    assert read(tmp_path / "rows.csv") == [line("a", 1)]


def test_columns_of_older_rows_may_be_missing_and_unknown_ones_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("name,step\na,1\n")
    assert read(tmp_path / "rows.csv") == [line("a", 1)]
    (tmp_path / "rows.csv").write_text("name,step,speed\na,1,3\n")
    with pytest.raises(ValueError, match=r"has the columns speed, which are not known: it may have name, step, score"):
        read(tmp_path / "rows.csv")


def test_what_the_numbers_may_depend_on_is_told() -> None:
    found = surroundings("python x", {"a": 1}, ["numpy", "no-such-package"])
    assert found["packages"] == {"numpy": np.__version__, "no-such-package": None}
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gb"] > 0.1
    assert found["hardware"]["processor"]
    assert (found["command"], found["settings"]) == ("python x", {"a": 1})


@functools.cache
def trained(algorithm: str, storage: bool | str) -> list[tuple[dict, dict]]:
    """Parameters and masks, unpacked, of a small training: before it and after each of three steps."""
    params = {
        "a": {"w": jax.random.normal(jax.random.key(0), (6, 5))},
        "b": jnp.ones(5),
        "c": jnp.arange(1.0, 13)[None],
    }
    updater = core.create_updater_from_config(
        algorithm=algorithm,
        sparsity=0.5,
        update_freq=1,
        update_start_step=1,
        update_end_step=3,
        drop_fraction=0.5,
        skip_gradients=False,
        use_packed_masks=storage,
    )
    tx = updater.wrap_optax(optax.sgd(0.1))
    state = tx.init(params)
    params = updater.pre_forward_update(params, state)
    found = [(params, state)]
    for step in range(3):
        grads = jax.tree.map(lambda leaf, step=step: jnp.sin(7.0 * leaf + step), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


@pytest.mark.parametrize("storage", [True, False, "zeros"])
def test_layers_are_those_of_masks_counted_by_hand(storage: bool | str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, LAYOUT, GOOD, RECORD)
    recorder.restart()
    for step, (params, state) in enumerate(trained("rigl", storage)):
        recorder.add(step, masks_of(params, state), score=0.0, is_last=int(step == 3))
    recorder.end(1.0, 1)
    expected, before = [], {}
    for step, (params, state) in enumerate(trained("rigl", storage)):
        masks = core.unpack_masks(params, core.find_sparse_state(state).masks)
        for name, mask in (("a/w", masks["a"]["w"]), ("c", masks["c"])):
            bits = [bool(bit) for bit in np.asarray(mask).ravel()]
            changed = sum(x != y for x, y in zip(bits, before[name], strict=True)) if step else ""
            expected.append(("good", "0", str(step), name, str(len(bits)), str(sum(bits)), str(changed)))
            before[name] = bits
            assert 1 - sum(bits) / len(bits) == pytest.approx(float(core.summarize_sparsity({name: mask})[name]))
    assert [tuple(line.values()) for line in rows.read_lines(recorder.folder / "layers.csv")] == expected
    assert any(int(line[-1] or 0) for line in expected), "some of it moves"


def test_masks_of_several_seeds_are_those_of_each() -> None:
    (params, first), (other_params, second) = trained("rigl", True)[0], trained("rigl", True)[3]
    stacked = jax.tree.map(
        lambda x, y: jnp.stack([jnp.asarray(x), jnp.asarray(y)]), (params, first), (other_params, second)
    )
    together = masks_of_seeds(*stacked)
    for masks, (of_seed, state) in zip(together, ((params, first), (other_params, second)), strict=True):
        assert list(lines(masks, masks_of(of_seed, state))) == list(lines(masks, masks))
    dense = core.NoPruning().wrap_optax(optax.sgd(0.1)).init(params)
    assert masks_of(params, dense) == {}


def test_a_run_goes_on_from_what_it_saved(tmp_path: Path) -> None:
    steps = list(enumerate("abcd"))
    masks = {name: {"w": Mask(np.array([random.Random(name).randrange(256)], np.uint8), 8)} for name in "abcd"}

    def begun(name: str) -> Recorder:
        return Recorder(tmp_path / name, LAYOUT, GOOD, RECORD)

    whole, stopped = begun("whole"), begun("stopped")
    for recorder, count in ((whole, 4), (stopped, 3)):
        recorder.restart()
        for step, state in steps[:count]:
            recorder.add(step, masks[state], is_last=int(step == 3))
            if step == 1:
                saved = json.loads(json.dumps(recorder.save()))
    stopped.measure("early", "bytes", 1.0)
    assert not has_ended(stopped.folder)
    again = begun("stopped")
    again.restart(saved)
    for step, state in steps[2:]:
        again.add(step, masks[state], is_last=int(step == 3))
    for recorder in (whole, again):
        recorder.measure("late", "bytes", 2.0)
        recorder.end(1.0, 1)
    for name in ("results.csv", "layers.csv", "measurements.csv", "summary.json"):
        assert (whole.folder / name).read_bytes() == (again.folder / name).read_bytes(), name
    found = rows.read_rows(again.folder / "measurements.csv", MEASUREMENTS)
    assert found == [Row(cell="good", seed=0, item="late", quantity="bytes", value=2.0)]
    assert json.loads((again.folder / "summary.json").read_text())["last"]["step"] == 3
    config = json.loads((again.folder / "config.json").read_text())
    assert (config["cell"], config["seed"], config["command"]) == ({"cell": "good"}, 0, RECORD["command"])
    assert [process["command"] for process in config["resumed"]] == [RECORD["command"]]
    assert has_ended(again.folder)


def test_a_run_without_an_end_is_no_finished_one_and_a_failure_keeps_its_rows(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, LAYOUT, GOOD, RECORD)
    recorder.add(4, score=0.5)
    with pytest.raises(RuntimeError, match="good at 50 %, seed 0 has ended without a last row"):
        recorder.end(1.0, 1)
    recorder.reached = 7
    recorder.fail(ValueError("too\n large"))
    assert "failed: ValueError: too large" in recorder.end(1.0, 1)
    stored = rows.read_rows(recorder.folder / "results.csv", LAYOUT.columns)
    assert [(row.step, row.score, row.failure) for row in stored] == [(4, 0.5, ""), (7, None, "ValueError: too large")]
    assert json.loads((recorder.folder / "summary.json").read_text())["status"] == "failed"


def test_layers_that_come_again_after_a_stop_count_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, LAYOUT, GOOD, RECORD)
    masks = {name: Mask(np.array([number], np.uint8), 8) for number, name in enumerate(("v", "w"), 1)}
    for step in (1, 2, 2, 3):  # the second stretch was trained twice
        recorder.add_layers(step, masks, masks)
    recorder.rewrite([recorder.row(3, score=0.5, is_last=1)])
    recorder.end(1.0, 1)
    stored = rows.read_lines(recorder.folder / "layers.csv")
    assert [(line["step"], line["layer"]) for line in stored] == [(step, layer) for step in "123" for layer in "vw"]


def test_masks_come_back_from_json() -> None:
    masks = {"w": Mask(np.arange(6, dtype=np.uint8).reshape(2, 3).T, 48)}
    back = from_json(json.loads(json.dumps(to_json(masks))))
    assert back["w"].size == 48
    np.testing.assert_array_equal(back["w"].bits, masks["w"].bits)
    assert from_json(to_json(None)) is None


def test_a_study_names_its_module() -> None:
    assert name_of({"command": "python -m experiments.t5 algorithms --seeds 1"}) == "t5"
    assert name_of({"command": "x", "domain": "atari"}) == "atari"
    with pytest.raises(ValueError, match=f"'strokes' writes no study; those that do are {', '.join(LAYOUTS)}"):
        layout_of({"command": "python -m experiments.strokes"}, LAYOUTS)


def test_a_row_takes_no_number_that_has_no_column(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="rows have no accuracy; they have cell, seed, step, training_loss"):
        Recorder(tmp_path, LAYOUT, GOOD, RECORD).add(1, accuracy=0.5)


def test_a_cell_comes_back_from_what_its_rows_say_of_it() -> None:
    for name, settings in (
        ("fed_emnist", {"algorithms": ["rigl"], "sparsities": [0.8], "rounds": 2}),
        ("minatar", {"games": ["Breakout"], "algorithms": ["no_prune", "rigl"], "sparsities": [0.5]}),
        ("versus_dopamine", {"tasks": ["cartpole", "breakout"]}),
    ):
        folder = next(path for path in RESULTS.iterdir() if read_name(path) == name)
        record = json.loads((folder / "config.json").read_text())
        record["settings"] |= settings
        layout = layout_of(record, LAYOUTS)
        assert layout.cells
        assert all(layout.cell_of(layout.key(cell)) == cell for cell in layout.cells)
        assert len({layout.path(Run(cell, 3)) for cell in layout.cells}) == len(layout.cells)


def read_name(folder: Path) -> str:
    return name_of(json.loads((folder / "config.json").read_text())) if (folder / "config.json").exists() else ""
