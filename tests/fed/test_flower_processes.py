"""A SuperLink and three SuperNodes as processes of their own: the run of FedJAX, its bytes included."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest

from experiments.demos.flower.processes import Federation
from sparse_plugins import fed
from tests.fed.flower_linear import examples, linear_model
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


def test_real_processes_are_the_run_of_fedjax_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"nodes": NODES, "rounds": ROUNDS, "algorithm": "rigl", "is_saved": 0, "dies_after": -1, "timeout": 200.0}
    with Federation(Path("processes"), NODES) as federation:
        log = federation.run_app(
            "linear", "tests.fed.flower_server", "tests.fed.flower_linear", 300, folder=str(tmp_path), **config
        )
    assert (tmp_path / "model.npz").exists(), log
    expected, theirs = run_of_fedjax()
    with np.load(tmp_path / "model.npz") as model:
        for name in ("w", "b", "steps"):
            npt.assert_allclose(model[name], expected[name], rtol=0, atol=1e-5)
        npt.assert_array_equal(model["w"] != 0, np.asarray(expected["w"]) != 0)
    ours = fed.Ledger.from_csv((tmp_path / "ledger.csv").read_text())
    assert paid(ours) == paid(theirs)
    assert theirs.total().growth > 0
