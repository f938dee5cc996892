"""The server of the demonstration: Flower's FedAvg, dense or in `SparseStrategy`."""

import json
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from experiments.demos.flower import digits
from sparse_plugins import core, fed
from sparse_plugins.fed.flower import SparseStrategy

__all__ = ["app"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, and leaves accuracies and the ledger in the folder of the run."""
    config = context.run_config
    nodes, rounds, sparsity = int(config["nodes"]), int(config["rounds"]), float(config["sparsity"])
    folder, accuracies = Path(str(config["folder"])), {}
    folder.mkdir(parents=True, exist_ok=True)
    strategy: Strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    if sparsity > 0:
        updater = core.create_updater_from_config(
            algorithm="set",
            sparsity=sparsity,
            dist_type="uniform",
            update_freq=2,
            update_start_step=1,
            update_end_step=max(rounds - 2, 2),
            step_unit="round",
        )
        strategy = SparseStrategy(strategy, updater, run="demo", wire=fed.Wire(zstd=bool(config["zstd"])))

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        accuracies[number] = digits.accuracy({name: array.numpy() for name, array in arrays.items()})
        return MetricRecord({"accuracy": accuracies[number]})

    first = ArrayRecord({name: Array(array) for name, array in digits.first_model(1 - sparsity).items()})
    settings = ConfigRecord({"nodes": nodes})
    strategy.start(grid, first, rounds, 600, train_config=settings, evaluate_fn=evaluate)
    if isinstance(strategy, SparseStrategy):
        strategy.ledger.save(folder / "ledger.csv")
    (folder / "accuracies.json").write_text(json.dumps(accuracies))
