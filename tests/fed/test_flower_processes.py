"""A SuperLink and three SuperNodes as processes of their own: the run of FedJAX, and the run of those that live."""

import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest
from flwr.serverapp.strategy import FedAvg, Result

from experiments.demos.flower.processes import Federation, end
from sparse_plugins import fed
from sparse_plugins.fed.flower import SparseStrategy
from tests.fed.flower_hanging import VICTIM
from tests.fed.flower_linear import examples, linear_app, linear_model
from tests.fed.flower_nodes import LocalGrid, sparse_run
from tests.fed.updater_in_rounds import updater_of

fedjax = fed.import_fedjax()
NODES, ROUNDS = 3, 2


def loss(params: dict, batch: dict) -> jax.Array:
    error = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    return jnp.sum(jnp.square(error)) / 2 / len(batch["y"])


def gradient(params: dict, batch: dict, rng: jax.Array) -> dict:
    """The same, with the integer that a client counts up by 1 under a learning rate of 0.1."""
    floats = {name: params[name] for name in ("w", "b")}
    return {**jax.grad(loss)(floats, batch), "steps": jnp.full((), -10)}


def run_of_fedjax() -> tuple[dict, fed.Ledger]:
    ledger = fed.Ledger()
    algorithm = fed.sparse_federated_averaging(
        gradient,
        fedjax.optimizers.sgd(0.1),
        optax.sgd(1.0),
        updater_of("rigl"),
        fedjax.ShuffleRepeatBatchHParams(batch_size=20, num_epochs=1, seed=0),
        ledger=ledger,
        run="processes",
    )
    model = {name: array.numpy() for name, array in linear_model().items()}
    params = {**jax.tree.map(jnp.asarray, model), "steps": jnp.zeros((), jnp.int32)}
    state = algorithm.init(params)
    for _ in range(ROUNDS):
        data = [dict(zip("xy", examples(place), strict=True)) for place in range(NODES)]
        clients = [(str(place), fedjax.ClientDataset(each), jax.random.key(0)) for place, each in enumerate(data)]
        state, _ = algorithm.apply(state, clients)
    return state.params, ledger


def paid(ledger: fed.Ledger) -> list[tuple]:
    """All but the names of nodes, and so their order, which Flower draws."""
    return sorted((e.round, e.down, e.up, e.growth, e.status, e.growth_status) for e in ledger)


def server_config(folder: Path, algorithm: str, **others: float | str) -> dict:
    settings = {"nodes": NODES, "rounds": ROUNDS, "is_saved": 0, "dies_after": -1, "timeout": 200.0}
    return {**settings, **others, "algorithm": algorithm, "folder": str(folder)}


def kill_a_node_that_trains(federation: Federation, run: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "trains").exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.1)
    end(federation.nodes[VICTIM])


def test_real_processes_are_the_run_of_fedjax_and_outlive_one_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    killed = tmp_path / "killed"
    killed.mkdir()
    apart = {"timeout": 20.0, "rounds": 1, "after": str(tmp_path / "ledger.csv")}
    with Federation(Path("processes"), NODES) as federation:
        # The second run starts beside the first, and waits for its end; what it waits for by itself is used as well.
        config = server_config(tmp_path, "rigl", after=str(tmp_path))
        second = server_config(killed, "set", **apart)
        run = federation.start_app("killed", "tests.fed.flower_server", "tests.fed.flower_hanging", **second)
        log = federation.run_app("linear", "tests.fed.flower_server", "tests.fed.flower_linear", 300, **config)
        kill_a_node_that_trains(federation, run, killed)
        expected, theirs = run_of_fedjax()
        rest = run_of_the_rest()
        run.wait(timeout=200)
        log_of_killed = federation.log("killed")
    assert (tmp_path / "model.npz").exists(), log
    assert (killed / "model.npz").exists(), log_of_killed
    with np.load(tmp_path / "model.npz") as model:
        for name in ("w", "b", "steps"):
            npt.assert_allclose(model[name], expected[name], rtol=0, atol=1e-5)
        npt.assert_array_equal(model["w"] != 0, np.asarray(expected["w"]) != 0)
    ours = fed.Ledger.from_csv((tmp_path / "ledger.csv").read_text())
    assert paid(ours) == paid(theirs)
    assert theirs.total().growth > 0
    check_the_rest_went_on(killed, *rest)


def run_of_the_rest() -> tuple[SparseStrategy, Result]:
    """The run with a node that never answers, in this process."""
    carry = lambda node, reply: None if node == VICTIM else reply  # noqa: E731
    grid = LocalGrid(dict.fromkeys(range(NODES), linear_app()), carry)
    options = {"run": "processes", "resends_masks": True, "rounds": 1, "grid": grid}
    return sparse_run(updater_of("set"), FedAvg(fraction_evaluate=0.0), **options)


def check_the_rest_went_on(folder: Path, strategy: SparseStrategy, result: Result) -> None:
    with np.load(folder / "model.npz") as model:
        for name, array in result.arrays.items():
            npt.assert_allclose(model[name], array.numpy(), rtol=0, atol=1e-6)
    ledger = fed.Ledger.from_csv((folder / "ledger.csv").read_text())
    (lost,) = [entry for entry in ledger if entry.status != "ok"]
    assert (lost.round, lost.up) == (0, 0)
    assert lost.status == "no reply in time" or lost.status.startswith("failed: ")
    sent = lambda entries: sorted((e.round, e.down, e.up) for e in entries)  # noqa: E731
    assert sent(ledger) == sent(strategy.ledger)
