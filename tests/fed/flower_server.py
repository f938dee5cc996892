"""The server of the tests with Flower's processes: a sparse run on the linear task, written to a folder."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from sparse_plugins import fed
from sparse_plugins.fed.flower import SparseStrategy
from tests.fed.flower_linear import linear_model
from tests.fed.updater_in_rounds import updater_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config, folder = context.run_config, Path(str(context.run_config["folder"]))
    nodes = int(config["nodes"])
    while not Path(str(config["after"])).exists():  # another run has the nodes
        time.sleep(0.1)
    settings = {"fraction_evaluate": 0.0, "min_train_nodes": nodes, "min_available_nodes": nodes}
    checkpoints = fed.Checkpoints(folder / "checkpoints") if config["is_saved"] else None
    strategy = SparseStrategy(
        FedAdam(**settings) if config["is_saved"] else FedAvg(**settings),
        updater_of(str(config["algorithm"])),
        run="processes",
        checkpoints=checkpoints,
        resends_masks=True,
    )

    def watch(number: int, arrays: object) -> None:
        (folder / f"round_{number}").touch()
        if number == config["dies_after"]:
            os.kill(os.getpid(), signal.SIGKILL)

    result = strategy.start(grid, linear_model(), int(config["rounds"]), config["timeout"], evaluate_fn=watch)
    np.savez(folder / "model.npz", **{name: array.numpy() for name, array in result.arrays.items()})
    strategy.ledger.save(folder / "ledger.csv")
