"""Hostile clients do what the study says they do, and the study tells a defence from none."""

from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

from experiments.harness.tables.stored import read_study
from experiments.hostile.__main__ import run
from experiments.hostile.clients import Attack, HostileBackend
from experiments.hostile.federated import HostileSettings
from experiments.hostile.growth import shares
from experiments.registry import LAYOUTS
from sparse_plugins import fed
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend

fedjax = fed.import_fedjax()


@pytest.mark.parametrize(
    ("attack", "expected"), [(Attack(-10.0), -10 * 7.0), (Attack(10.0, relabels=10), 10 * 20.0), (Attack(1.0), 7.0)]
)
def test_the_first_clients_of_a_round_send_something_else(attack: Attack, expected: float) -> None:
    """What clients send here is the sum of their labels; masks are left alone."""
    final = lambda shared, total: {"delta": 1.0 * total, "masks": shared}  # noqa: E731
    with fedjax.for_each_client_backend(HostileBackend(ScanBackend(), attack, count=2)):
        summing = fedjax.for_each_client(
            lambda shared, client: client, lambda total, batch: total + batch["y"].sum(), final
        )
    batches = [{"y": np.array([1, 2])}, {"y": np.array([4])}]
    outputs = dict(summing(np.ones(2, np.uint8), [(place, batches, np.float32(0)) for place in range(4)]))
    assert [float(output["delta"]) for output in outputs.values()] == [expected, expected, 7.0, 7.0]
    for output in outputs.values():
        npt.assert_array_equal(output["masks"], [1, 1])


def test_two_of_ten_turn_the_mean_and_not_the_median(tmp_path: Path) -> None:
    cells = [f"{defence}, two turning signs" for defence in ("mean", "median")]
    command = ["clients", "--only", *cells, "--seeds", "0", "1", "--dataset=digits", "--rounds=6"]
    assert run([*command, f"--output={tmp_path}", "--name=x"]) == 0
    ends = {(row.cell, row.seed): row for row in read_study(tmp_path / "x", LAYOUTS).rows if row.is_last}
    assert len(ends) == 4
    for seed in (0, 1):
        mean, median = (ends[cell, seed] for cell in cells)
        assert [round(row.sparsity, 4) for row in (mean, median)] == [0.8, 0.8]
        assert mean.loss > median.loss


def test_one_client_grows_all_by_sums_and_little_by_ranks() -> None:
    found = shares(HostileSettings(name="growth", seeds=(0,), dataset="digits", rounds=4))
    assert [*found] == ["linear/w", "linear_1/w"]  # the last layer is dense
    assert all(sums == 1.0 and ranks < 0.2 for sums, ranks in found.values())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--clients-per-round=9", "--clients-per-round must be 10 or more, got 9"),
        ("--factor=0", "--factor must be finite and above 0, got 0.0"),
        ("--clipping-norm=-1", "--clipping-norm must be finite and above 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(
    flag: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        run(["clients", flag, f"--output={tmp_path}"])
    assert message in capsys.readouterr().err
