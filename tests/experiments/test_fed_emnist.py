"""The federated study end to end: what it leaves behind, that it repeats, and what it says when it can't."""

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import fedjax
import jax
import numpy as np
import optax
import pytest
from matplotlib.image import imread

from experiments.fed_emnist import train
from experiments.fed_emnist.__main__ import main
from experiments.fed_emnist.config import FederatedSettings, seed_for
from experiments.fed_emnist.layout import about, layout, parameter_bytes
from experiments.harness import csv_files as csv_rows
from experiments.harness.cells import Cell, Run
from experiments.harness.layout import Row
from experiments.harness.settings import read_command_line
from experiments.harness.tables import report
from experiments.harness.tables.stored import Stored
from sparse_plugins import core, fed
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.fed.fedjax.datasets import SeededClientSampler
from tests.fed.emnist_files import write_emnist
from tests.fed.test_idx_data import write_idx

FILES = ["bytes.png", "churn.png", "config.json", "curves.png", "layers.csv", "layers.png", "results.csv", "results.md"]
FILES += ["runs", "sparsity.png", "timing.csv"]
RUN_FILES = ["config.json", "ledger.csv", "params.npz", "results.csv", "summary.json", "timing.csv"]
QUICK = ["--rounds=3", "--clients-per-round=2", "--evaluate-every=2"]
TWO = ["--algorithms", "no_prune", "static_sparse"]


def parse(arguments: list[str]) -> FederatedSettings:
    return read_command_line(FederatedSettings, "fed_emnist", "", arguments)


LAYOUT = layout({"settings": dataclasses.asdict(parse([]))})


def study(output: Path, name: str, *flags: str) -> tuple[int, list[Row]]:
    status = main([*QUICK, f"--output={output}", f"--name={name}", *flags])
    return status, read_rows(output / name)


def read_rows(folder: Path) -> list[Row]:
    return csv_rows.read_rows(folder / "results.csv", LAYOUT.columns)


def folder_of(study: Path, row: Row) -> Path:
    return study / LAYOUT.path(LAYOUT.run_of(row))


def evaluations_of(config: FederatedSettings, run: Run) -> list[train.Evaluation]:
    task = train.prepare(config)
    algorithm = train.averaging(config, run, task, fed.Ledger())
    steps = train.train(config, run, task, algorithm, train.first_state(config, run, task, algorithm))
    return [step.evaluation for step in steps if step.evaluation is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study: dense and static, two seeds."""
    output = tmp_path_factory.mktemp("runs")
    assert study(output, "first", *TWO, "--seeds", "0", "1")[0] == 0
    return output / "first"


def test_a_study_leaves_its_files(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == FILES
    runs = [f"{cell}/seed-{seed}" for cell in ("no_prune-0.0", "static_sparse-0.8") for seed in (0, 1)]
    assert sorted(str(run.relative_to(folder / "runs")) for run in (folder / "runs").glob("*/*")) == runs
    for run in (folder / "runs").glob("*/*"):
        masks = ["layers.csv"] if "static_sparse" in str(run) else []
        assert sorted(file.name for file in run.iterdir()) == sorted([*RUN_FILES, *masks])
    for picture in ("curves.png", "sparsity.png", "bytes.png", "layers.png", "churn.png"):
        height, width, _ = imread(folder / picture).shape
        assert min(height, width) > 600


def test_there_is_a_row_for_every_evaluation_of_every_run(folder: Path) -> None:
    rows = read_rows(folder)
    runs = [("no_prune", 0.0, 0), ("no_prune", 0.0, 1), ("static_sparse", 0.8, 0), ("static_sparse", 0.8, 1)]
    assert [(row.algorithm, row.sparsity, row.seed, row.round) for row in rows] == [
        (*run, finished) for run in runs for finished in (0, 2, 3)
    ]
    assert not any(row.failure for row in rows)
    for row in rows:
        assert row.measured_sparsity == pytest.approx(row.sparsity, abs=1e-4), "sparse from round 0 on"
        assert 0 <= row.test_accuracy <= 1
        assert 0 < row.test_loss < 3
        assert 0 < row.train_loss < 3
    for first, last in zip(rows[::3], rows[2::3], strict=True):
        assert last.train_loss < first.train_loss, "it learns"
    with (folder / "results.csv").open() as file:
        assert next(csv.reader(file))[:4] == ["algorithm", "sparsity", "seed", "round"]


def test_bytes_are_those_of_the_ledger_and_fewer_where_it_is_sparse(folder: Path) -> None:
    for row in read_rows(folder):
        ledger = fed.Ledger.from_csv((folder_of(folder, row) / "ledger.csv").read_text())
        assert [entry.round for entry in ledger] == [0, 0, 1, 1, 2, 2], "two clients a round"
        total = ledger.total(before_round=row.round)
        assert (row.down_bytes, row.up_bytes) == (total.down, total.up + total.growth)
    dense, _, static, _ = (row for row in read_rows(folder) if row.round == 3)
    parameters = 784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    assert dense.up_bytes == pytest.approx(3 * 2 * 4 * parameters, rel=1e-3)
    assert 0.2 < static.up_bytes / dense.up_bytes < 0.21
    assert " 100.01 ± 0.00 |" in (folder / "results.md").read_text()


def test_narrower_values_take_fewer_bytes(folder: Path, tmp_path: Path) -> None:
    flags = ("--algorithms", "static_sparse", "--seed=0", "--wire=float16", "--backend=jit")
    _, rows = study(tmp_path, "narrow", *flags)
    wide = next(
        row for row in read_rows(folder) if row.algorithm == "static_sparse" and row.seed == 0 and row.round == 3
    )
    assert rows[-1].up_bytes == pytest.approx(wide.up_bytes / 2, rel=0.01)
    assert rows[-1].test_loss == pytest.approx(wide.test_loss, rel=0.01)


def test_the_last_parameters_are_kept_by_name(folder: Path) -> None:
    params = np.load(folder / "runs" / "static_sparse-0.8" / "seed-0" / "params.npz")
    assert params["linear/w"].shape == (784, 200)
    weights = [params[name] for name in params if name.endswith("/w")]
    assert sum((w != 0).sum() for w in weights) == round(0.2 * sum(w.size for w in weights))
    lines = csv_rows.read_lines(folder / "runs" / "static_sparse-0.8" / "seed-0" / "layers.csv")
    assert [(line["round"], line["changed"]) for line in lines] == 3 * [("0", "")] + 3 * [("2", "0")] + 3 * [("3", "0")]
    kept = {line["layer"]: int(line["kept"]) for line in lines if line["round"] == "3"}
    assert kept == {name: np.count_nonzero(params[name]) for name in params if name.endswith("/w")}


def test_time_stands_in_a_file_of_its_own(folder: Path) -> None:
    with (folder / "timing.csv").open() as file:
        lines = list(csv.DictReader(file))
    runs = [(line["algorithm"], line["sparsity"], line["seed"]) for line in lines]
    assert runs[1:3] == [("no_prune", "0.0", "1"), ("static_sparse", "0.8", "0")]
    assert all(float(line["seconds"]) > 0 for line in lines)
    assert "seconds" not in (folder / "results.csv").read_text()


def test_the_settings_and_their_surroundings_are_recorded(folder: Path) -> None:
    record = json.loads((folder / "config.json").read_text())
    assert record["command"].startswith("python -m experiments.fed_emnist --rounds=3 ")
    assert record["settings"]["seeds"] == [0, 1]
    assert record["settings"]["update_end"] == 2
    assert {"jax", "optax", "fedjax"} <= {name for name, version in record["packages"].items() if version}
    assert {"git", "python", "platform", "devices"} <= set(record)


def test_the_table_shows_every_setting(folder: Path) -> None:
    text = (folder / "results.md").read_text()
    assert "| dense " in text
    assert "| static_sparse |" in text
    assert text.count(" ± ") >= 2
    assert "no_prune" not in text


def test_one_seed_repeats_exactly_and_two_differ(folder: Path, tmp_path: Path) -> None:
    rows = read_rows(folder)
    _, again = study(tmp_path, "again", *TWO, "--seed", "1")
    assert again == rows[3:6] + rows[9:12]
    for ours, theirs in ((rows[:3], rows[3:6]), (rows[6:9], rows[9:12])):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.test_loss, a.train_loss) != (b.test_loss, b.train_loss)
    assert len({seed_for(seed, use) for seed in (0, 1) for use in ("model", "updater")}) == 4


@pytest.mark.parametrize("clients", ["masked", "dense"])
def test_dense_training_is_fedjaxs_own(clients: str) -> None:
    config = parse([*QUICK, "--algorithms", "no_prune", "--clients", clients])
    run = Run(Cell("", "no_prune", 0.0), seed=5)
    task = train.prepare(config)
    ours = evaluations_of(config, run)[-1]

    schedule = optax.cosine_decay_schedule(config.server_learning_rate, 3)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        task.gradient,
        fedjax.optimizers.sgd(config.client_learning_rate),
        fedjax.optimizers.create_optimizer_from_optax(optax.adam(schedule, eps=config.server_epsilon)),
        fedjax.ShuffleRepeatBatchHParams(batch_size=32),
    )
    state = algorithm.init(task.model.init(jax.random.PRNGKey(seed_for(run.seed, "model"))))
    sampler = SeededClientSampler(task.train, 2, seed_for(run.seed, "clients"))
    for _ in range(3):
        state, _ = algorithm.apply(state, sampler.sample())
    theirs = fedjax.evaluate_model(task.model, state.params, task.test_batches)
    assert ours.test_accuracy == pytest.approx(float(theirs["accuracy"]), abs=1e-6)
    assert ours.test_loss == pytest.approx(float(theirs["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "at_first", "clients"),
    [
        ("rigl", 0.8, "masked"),
        ("magnitude_ste", 0.0, "masked"),
        ("magnitude_ste", 0.0, "dense"),
        ("global_magnitude", 0.0, "masked"),
    ],
)
def test_the_model_that_clients_get_is_sparse(algorithm: str, at_first: float, clients: str) -> None:
    flags = ["--update-start=1", "--update-every=1", "--algorithms", algorithm, f"--clients={clients}"]
    config = parse([*QUICK, *flags])
    evaluations = evaluations_of(config, Run(Cell("", algorithm, 0.8), 0))
    assert evaluations[0].measured_sparsity == pytest.approx(at_first, abs=1e-4)
    assert evaluations[-1].measured_sparsity == pytest.approx(0.8, abs=1e-5)


def test_clients_that_train_densely_get_sparse_weights_and_send_dense_ones() -> None:
    flags = ["--update-start=1", "--update-every=1", "--algorithms", "rigl", "--clients=dense"]
    config, run = parse([*QUICK, *flags]), Run(Cell("", "rigl", 0.8), 0)
    task, ledger = train.prepare(config), fed.Ledger()
    states = []
    for _ in range(2):  # the second goes on where the first was stopped, as after --resume
        algorithm = train.averaging(config, run, task, ledger)
        first = train.first_state(config, run, task, algorithm) if not states else states[-1]
        steps = train.train(config, run, task, algorithm, first)
        states += [step.state for step in itertools.islice(steps, 2)]
    masks = [core.unpack_masks(state.params, state.opt_state.masks) for state in (states[1], states[3])]
    assert not np.array_equal(masks[0]["linear"]["w"], masks[1]["linear"]["w"]), "masks move by the mean delta"
    weights = [np.asarray(states[-1].params[name]["w"]) for name in ("linear", "linear_1", "linear_2")]
    assert sum(map(np.count_nonzero, weights)) == sum(int(mask[name]["w"].sum()) for mask in masks[1:] for name in mask)
    assert [entry.round for entry in ledger] == [0, 0, 1, 1, 2, 2]
    dense = 4 * sum(leaf.size for leaf in jax.tree.leaves(states[0].params))
    assert ledger.total().down < 0.25 * 6 * dense
    assert 2 * ledger.total().down < ledger.total().up < 1.01 * 6 * dense, "only dead weights have no gradient"


def test_a_study_whose_clients_train_densely_saves_checkpoints_and_ends(tmp_path: Path) -> None:
    flags = ["--update-start=1", "--update-every=1", "--algorithms", "rigl", "--seed=0", "--checkpoint-every=1"]
    _, rows = study(tmp_path, "dense", *flags, "--clients=dense")
    assert [row.round for row in rows] == [0, 2, 3]
    assert all(row.down_bytes < 0.5 * row.up_bytes for row in rows[1:])


def test_initial_weights_can_be_scaled_to_the_inputs_that_are_kept() -> None:
    run, states = Run(Cell("", "static_sparse", 0.8), 0), []
    for flags in ([], ["--rescale"]):
        config = parse([*QUICK, "--algorithms", "static_sparse", *flags])
        task = train.prepare(config)
        states.append(train.first_state(config, run, task, train.averaging(config, run, task, fed.Ledger())))
    for name in ("linear", "linear_1"):
        plain, scaled = (np.asarray(state.params[name]["w"]) for state in states)
        inputs = np.maximum((plain != 0).sum(axis=0), 1)
        np.testing.assert_allclose(scaled, plain * np.sqrt(len(plain) / inputs), rtol=1e-5)


def test_the_report_says_who_trains_and_what_stays_dense() -> None:
    told = lambda *flags: about(dataclasses.asdict(parse([*QUICK, *flags])))  # noqa: E731
    assert "2 writers" in told()
    assert "stays dense" not in told()
    assert told("--dense-output").endswith("The last layer stays dense.")
    assert "2 clients" in told("--dataset=idx", "--data-dir=x")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    empty = {**dict.fromkeys(LAYOUT.columns), "algorithm": "set", "sparsity": 0.1, "seed": 3, "round": 0, "failure": ""}
    start = Row(**{**empty, "test_accuracy": 1 / 3, "test_loss": 1e-30, "down_bytes": 0})
    end = Row(**{**empty, "failure": 'ValueError: "a, b"\nc'})
    assert read_rows(tmp_path) == []
    for number, row in enumerate((start, end)):
        csv_rows.append_lines(tmp_path / "results.csv", list(LAYOUT.columns), [vars(row)])
        assert read_rows(tmp_path) == [start, end][: number + 1]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert main([*QUICK, *TWO, f"--output={folder.parent}", "--name=first"]) == 2
    told = capsys.readouterr().err
    assert f"is never overwritten. Choose another --name, or go on with it: --resume {folder}" in told
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_failed_run_is_recorded_and_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Steps this large overflow a dense network; without weights there is nothing to overflow.
    status, rows = study(tmp_path, "a", *TWO, "--seed=0", "--sparsities=1", "--server-learning-rate=1e20")
    assert status == 1
    dense, static = rows[:2], rows[2:]
    assert dense[-1].failure.startswith("TrainingDivergedError: no update of round 2 could be used: refused")
    assert dense[-1].test_accuracy is None
    assert [row.round for row in static] == [0, 2, 3]
    assert not any(row.failure for row in static)
    for text in ((tmp_path / "a" / "results.md").read_text(), capsys.readouterr().out):
        assert "- dense, seed 0, at round 0: TrainingDivergedError" in text
    summary = json.loads((folder_of(tmp_path / "a", dense[-1]) / "summary.json").read_text())
    assert (summary["status"], summary["failure"]) == ("failed", dense[-1].failure)
    assert (tmp_path / "a" / "curves.png").exists()


def test_real_emnist_takes_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--dataset=emnist", f"--cache-dir={tmp_path}", "--model=dense", "--seed=0"]
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert main([*QUICK, *flags, f"--output={tmp_path}", "--name=none"]) == 2
    assert not (tmp_path / "none").exists()
    write_emnist(tmp_path)
    sparsities = ("--sparsities", "0.5", "0.9")
    status, rows = study(tmp_path, "a", *flags, "--algorithms", "magnitude", *sparsities)
    assert status == 0
    assert [row.measured_sparsity for row in rows if row.round == 3] == pytest.approx([0.5, 0.9], abs=1e-4)
    assert [row.measured_sparsity for row in rows if row.round == 0] == [0.0, 0.0]


def test_files_of_mnists_format_take_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "fashion"
    write_idx(folder)
    flags = ["--dataset=idx", f"--data-dir={folder}", "--num-writers=3", "--model=dense", "--seed=0"]
    status, rows = study(tmp_path, "a", *flags, "--algorithms", "set", "--alpha=1")
    assert status == 0
    assert rows[-1].measured_sparsity == pytest.approx(0.8, abs=1e-4)
    text = (tmp_path / "a" / "results.md").read_text()
    assert "# Federated averaging on fashion" in text
    assert "Images are dealt to 3 clients by Dirichlet(1)." in text
    assert "796.8 kB" in text, "ten classes"
    (folder / "t10k-labels-idx1-ubyte").unlink()
    train.prepare.cache_clear()
    assert main([*QUICK, *flags, f"--output={tmp_path}", "--name=b"]) == 2
    assert "has no t10k-labels-idx1-ubyte" in capsys.readouterr().err


def test_defaults_are_the_datasets_own() -> None:
    digits, strokes, emnist = parse([]), parse(["--dataset=strokes"]), parse(["--dataset=emnist"])
    assert (strokes.num_writers, strokes.distribution, strokes.seeds) == (200, "uniform", (0, 1, 2))
    assert (digits.num_writers, emnist.num_writers) == (None, None)
    assert (digits.model, digits.clients_per_round, digits.rounds) == ("dense", 13, 100)
    assert (emnist.model, emnist.clients_per_round, emnist.rounds) == ("conv", 50, 1000)
    assert (emnist.update_start, emnist.update_end, emnist.update_every) == (250, 750, 10)
    assert parse(["--rounds=40"]).update_end == 30
    assert digits.name.startswith("fed_emnist-20")
    config = parse(["--sparsities", "0.5", "0.8", "--algorithms", "no_prune", "set", "--seed", "3"])
    assert config.seeds == (3,)
    assert list(config.cells()) == [("", "no_prune", 0.0, 1), ("", "set", 0.5, 1), ("", "set", 0.8, 1)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithms", "magnitud"], "allowed are no_prune, magnitude,"),
        (["--sparsities", "1.5"], "1.5"),
        (["--algorithms", "magnitude", "--structure", "2:x"], "structure '2:x' is unknown"),
        (["--rounds", "0"], "--rounds must be 1 or more, got 0."),
        (["--rounds", "10", "--update-end", "10"], "choose 0 <= --update-start <= --update-end < --rounds."),
        (["--update-start", "80"], "can't change from round 80 to 75 of 100"),
        (["--seeds", "1", "1"], "--seeds takes one value or more, each once, got [1, 1]."),
        (["--seed", "-1"], "--seeds must be 0 or more, got -1."),
        (["--seeds", "0"], "--seeds 0 asks for no seed: one number says how many. Try --seed 0."),
        (["--seeds", "2", "--seed", "1"], "argument --seed: not allowed with argument --seeds"),
        (["--client-learning-rate", "nan"], "--client-learning-rate must be finite and above 0, got nan."),
        (["--drop-fraction", "2"], "2"),
        (["--dataset", "mnist"], "choose from"),
        (["--num-writers", "20"], "--num-writers is for --dataset=strokes and idx only, got 20 for digits."),
        (["--dataset=idx"], "--dataset=idx and --data-dir=FOLDER, which holds its files, go together"),
        (["--data-dir=x"], "--dataset=idx and --data-dir=FOLDER, which holds its files, go together"),
        (["--dataset=idx", "--data-dir=x", "--alpha=0"], "--alpha must be finite and above 0, got 0.0."),
        (["--checkpoint-every", "-1"], "--checkpoint-every must be 0 or more, got -1."),
        (["--jobs", "0"], "--jobs must be 1 or more, got 0."),
        (["--wire", "float8"], "choose from"),
        (["--algorithms", "rigl:most"], "growth is 'most'; choose one of random, topk, delta, dense."),
        (["--algorithms", "set:topk"], "set grows no weights by gradients"),
        (["--algorithms", "rigl:topk", "--clients=dense"], "--clients=dense grows by what clients trained"),
        (["--sparsity", "0.5"], "unrecognized arguments"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*flags, f"--output={tmp_path}"])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clients-per-round=14"], "14 clients per round"),
        (["--structure=300x300", "--algorithms", "magnitude"], "linear"),
    ],
)
def test_settings_that_do_not_fit_data_or_model_are_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, f"--output={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["dense", "conv"])
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_the_last_layer_can_stay_dense(model: str, distribution: str) -> None:
    config = parse(["--model", model, "--distribution", distribution, "--dense-output", "--algorithms", "magnitude"])
    build = {"dense": fedjax.models.emnist.create_dense_model, "conv": fedjax.models.emnist.create_conv_model}[model]
    params = jax.eval_shape(build(only_digits=True).init, jax.random.PRNGKey(0))
    plan = core.describe_plan(config.updater(Run(Cell("", "magnitude", 0.8), 0)), params)
    dense = {line.split()[0] for line in plan.splitlines() if "/w " in line and " dense " in line}
    shapes = dict(zip(leaf_names(params), jax.tree.leaves(params), strict=True))
    assert dense == {name for name, leaf in shapes.items() if leaf.ndim > 1 and leaf.shape[-1] == 10}


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in vars(parse([])):
        assert f"--{name.replace('_', '-')} " in text
    assert text.count("(default: ") == len(vars(parse([])))
    assert "(default: 100 for digits, 200 for strokes, 1000 for emnist, 300 for idx)" in text
    assert "--resume FOLDER" in text


def test_the_table_averages_over_finished_runs_and_counts_the_others() -> None:
    def row(algorithm: str, seed: int, accuracy: float | None, failure: str = "") -> Row:
        return Row(
            algorithm=algorithm,
            sparsity=0.5,
            seed=seed,
            round=4,
            **dict.fromkeys(("test_accuracy", "test_loss", "measured_sparsity"), accuracy),
            **dict.fromkeys(("down_bytes", "up_bytes"), 4 * 13 * seed * 1000),
            failure=failure,
        )

    rows = [row("set", 0, 0.1), row("set", 0, 0.25), row("set", 1, 0.5), row("set", 2, None, "boom")]
    rows.append(row("rigl", 0, 0.75))
    config = parse(["--rounds=4", "--update-end=3", "--algorithms", "set", "rigl", "--sparsities=0.5"])
    record = {"settings": json.loads(json.dumps(dataclasses.asdict(config)))}
    origin = {"git": {"commit": "abc", "changed": True}}
    study = Stored((), (record,), layout(record), rows, [], [], {Run(Cell("", "set", 0.5), 0): origin})
    found = study.outcomes()
    assert [(len(outcome.finished), len(outcome.failed)) for outcome in found] == [(2, 1), (1, 0)]
    lines = report.tables(study).splitlines()
    dense = parameter_bytes(record["settings"]) / 1000
    assert dense == 4 * (784 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10) / 1000
    of_dense = [f"{100 * middle / dense:.2f} ± {100 * 0.5**0.5 / dense:.2f}" for middle in (0.5,)]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("set", "50 %", "37.5 %", "37.50 ± 17.68", "33.75 ± 22.98", "0.3750 ± 0.1768"),
        *("0.5 ± 0.7", *of_dense, "0.5 ± 0.7", *of_dense, "2", "1", "abc+"),
    ]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]][3:6] == ["75.00", "75.00", "0.7500"]
    assert lines[-1] == "- set at 50 %, seed 2, at round 4: boom"
    assert len({len(line) for line in lines[:4]}) == 1, "columns line up"
