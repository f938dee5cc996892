"""Benchmarks run at a size at which their numbers mean nothing, for what they print and leave behind."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.benchmarks import export, goals, large, masks, rl_iteration, step, timing, trace_walk
from experiments.benchmarks.models import resnet50_shapes
from experiments.benchmarks.timing import Timing
from experiments.benchmarks.weight_sync import __main__ as weight_sync
from experiments.benchmarks.weight_sync import ways

TINY = ["--shapes", "32x16", "16x16", "--batches", "1", "4", "--sparsities", "0.5", "0.9", "--rounds=3"]


def known(contestants: dict[str, Callable], baseline: str, rounds: int) -> dict[str, Timing]:
    """In place of clocks; all forms of a kernel but N:M, which has a mask of its own, have the same product."""
    products = {name: np.asarray(run()) for name, run in contestants.items()}
    for name in {*products} - {"N:M"}:
        np.testing.assert_allclose(products[name], products[baseline], rtol=1e-4, atol=1e-5)
    assert rounds == 3
    return {name: Timing(8.0, 0.5 + place, place, 0.9 + place) for place, name in enumerate(contestants)}


def test_the_export_benchmark_leaves_a_table_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(export, "interleave", known)
    export.main([*TINY, f"--out={tmp_path / 'new'}"])
    table = (tmp_path / "new" / "export.md").read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines() if " x " in line]
    speeds, sizes = rows[:8], rows[8:]
    assert [row[:3] for row in speeds] == [
        [shape, batch, sparsity] for shape in ("16 x 16", "32 x 16") for batch in "14" for sparsity in ("0.5", "0.9")
    ]
    assert [row[3:] for row in speeds] == 8 * [["8.000", "1.5", "2.5", "3.5", "4.5"]]
    assert [row[2] for row in sizes] == ["2:4", "1:10"] * 2
    nse, dense = round(32 * 16 * 0.1), 4 * 32 * 16
    memory = [12 * nse, 8 * nse + 4 * 33, 8 * nse + 4 * 17, 5 * 4 * 16]  # 1:10 of 32 inputs: four groups
    assert [float(cell) for cell in sizes[1][3:7]] == pytest.approx([size / dense for size in memory], rel=0.01)
    height, width, _ = imread(tmp_path / "new" / "export.png").shape
    assert min(height, width) > 600


def test_the_export_benchmark_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "export.md").write_text("mine")
    with pytest.raises(SystemExit):
        export.main([*TINY, f"--out={tmp_path}"])
    assert "export.md would be overwritten; remove them or choose another --out" in capsys.readouterr().err
    assert (tmp_path / "export.md").read_text() == "mine"


def test_a_ratio_is_the_median_of_those_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    seconds = {"base": itertools.cycle([0.0]), "other": itertools.cycle([0.0])}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))

    def contestant(name: str, ticks: list[int]) -> Callable:
        seconds[name] = itertools.chain([0, 0], ticks)  # two calls warm up
        return lambda: [next(clock) for _ in range(next(seconds[name]))]

    found = timing.interleave(
        {"base": contestant("base", [0, 1, 3]), "other": contestant("other", [1, 5, 3])}, "base", 3
    )
    assert (found["base"].milliseconds, found["base"].ratio) == (2_000.0, 1.0)  # of 1, 2 and 4 seconds
    assert (found["other"].milliseconds, found["other"].ratio) == (4_000.0, 2.0)  # of 2, 6 and 4


def run(main: Callable, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments.split()])
    main()


def test_the_mask_benchmark_checks_both_sides_and_prints_a_table_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(masks, "trees", lambda width, rounds: None)  # 54 layers take long to compile
    run(masks.main, "--size=16000 --rounds=3", monkeypatch)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("bfloat16", "lax.top_k", "2:4", "4x4 blocks", "MB"))
    assert printed.count("argsort, k traced") == 6


def test_a_path_without_jaxpruner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="has no package jaxpruner; give the top folder of a checkout"):
        run(masks.main, f"--jaxpruner={tmp_path} --size=16000 --rounds=3", monkeypatch)


def test_the_step_benchmark_prints_time_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    first_layers = dict(itertools.islice(resnet50_shapes(1).items(), 3))  # 54 layers take long to compile
    monkeypatch.setattr(step, "resnet50_shapes", lambda width: first_layers)
    run(step.main, "--rounds=3 --algorithms magnitude", monkeypatch)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| magnitude")]
    assert [row.split(" | ")[0].rstrip() for row in rows] == [
        "| magnitude",
        *(f"| magnitude, {variant}" for variant in ("explicit refresh", "uint8 masks", "masks in zeros")),
    ]
    assert all(" MB |" in row for row in rows)


def test_an_iteration_is_taken_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(rl_iteration, "TIMES", 1)
    monkeypatch.setattr(rl_iteration, "SEEDS", 2)
    assert list(rl_iteration.report(3)) == ["iteration", "learning", "Adam"]
    assert "| 512x512x512 |" in capsys.readouterr().out


def test_a_goal_is_judged_where_the_control_stands_still(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    bounds = {"a": goals.Goal("dense", 1.1, is_most=True), "b": goals.Goal("FedJAX", 2.0, is_most=False)}

    def part(control: float | None, a: float = 1.1, b: float = 2.0) -> tuple[Callable, dict[str, goals.Goal]]:
        return lambda effort: goals.Found({"a": a, "b": b}, control), bounds

    def absent(effort: goals.Effort) -> goals.Found:
        raise ModuleNotFoundError("no peer here")

    monkeypatch.setattr(
        goals, "PARTS", {"steady": part(0.98), "drifting": part(1.04, a=9.0), "absent": (absent, bounds)}
    )
    assert goals.main(["--only", "steady", "drifting", "absent"]) == 0
    printed = capsys.readouterr().out
    assert [line.split("|")[-2].strip() for line in printed.splitlines() if line.startswith(("| a", "| b"))] == [
        *2 * ["pass"],
        *2 * ["none: the control is 1.040"],
        *2 * ["not measured: no peer here"],
    ]
    monkeypatch.setattr(goals, "PARTS", {"slow": part(None, a=1.2, b=1.9)})
    assert goals.main(["--only", "slow"]) == 1
    assert capsys.readouterr().out.count("short") == 2


def test_parts_measure_what_their_goals_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    effort = goals.Effort(3, 3, None)
    monkeypatch.setattr(step, "resnet50_shapes", lambda width: {"stem": {"kernel": (2, 2)}})
    monkeypatch.setattr(step, "_contestant", lambda tx, params, grads: (lambda: np.zeros(()), ""))  # compiles nothing
    monkeypatch.setattr(goals.codec, "SHAPES", {"w": (40, 30)})
    for name in ("step", "codec"):
        found = goals.PARTS[name][0](effort)
        assert set(goals.PARTS[name][1]) <= set(found.figures)
    with pytest.raises(ModuleNotFoundError, match="give --jaxpruner"):
        goals.PARTS["jaxpruner"][0](effort)


def test_the_benchmark_of_large_models_prints_seconds_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(large, "_LAYER", (32, 16))
    run(large.main, "--parameters=0 --algorithms rigl", monkeypatch)
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")]
    assert row[0] == "rigl"
    assert [cell.count(" s, ") for cell in row[1:]] == [1, 1, 1, 0]


def test_one_update_can_be_followed_on_foot(capsys: pytest.CaptureFixture) -> None:
    """More is a sign that something known from names and shapes is worked out again on the way."""
    trace_walk.main(["--algorithms", "magnitude", "rigl"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]
    walks = {name: tuple(map(int, numbers)) for name, *numbers in cells}
    most = {"magnitude": (246, 102, 82, 42), "rigl": (340, 146, 82, 42)}
    assert [name for name in most if any(a > b for a, b in zip(walks[name], most[name], strict=True))] == []


def test_all_ways_to_send_weights_bring_the_same_bits_and_the_bound_is_the_entropy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    base = {"w": np.arange(1000, dtype=np.float16)}
    new = {"w": base["w"].copy()}
    new["w"].view(np.uint16)[::10] += np.tile([1, 2], 50).astype(np.uint16)
    positions = -1000 * (0.1 * np.log2(0.1) + 0.9 * np.log2(0.9))
    assert ways.entropy_bound(new, base) == pytest.approx((positions + 100) / 8)
    assert ways.changed_share(new, base) == 0.1
    costs = ways.measured([base, new, base], rounds=1)
    assert costs["full copy"].share == 1.0
    assert costs["int32 positions, values"].share == pytest.approx(0.3)
    assert costs["16-bit gaps, values"].share == pytest.approx(0.2)
    broken = ways.Way(lambda new, base: b"", lambda sent, base: ways.bits(base))
    monkeypatch.setattr(ways, "ways", lambda digest: {"broken": broken})
    with pytest.raises(AssertionError):
        ways.measured([base, new], rounds=1)
    monkeypatch.undo()
    run_once = "--width 16 --layers 1 --shown 1 --warm-up 0 --steps 1 --rounds 1 --learning-rates 1e-6 1e-3"
    with jax.numpy_rank_promotion("allow"):  # as users have it
        run(weight_sync.main, f"--parts transformer {run_once}", monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("bfloat16, learning rate") == 2
    assert printed.count("| wire.delta  ") == 2
