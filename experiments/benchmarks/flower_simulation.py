"""A thousand virtual clients through Flower's simulation engine: wall time, memory at peak, and bytes.

    pip install "flwr[simulation]>=1.42,<1.43"
    python -m experiments.benchmarks.flower_simulation --nodes 1000
    python -m experiments.benchmarks.flower_simulation --nodes 1000 --engine process   # without Ray

Every client trains in every round: least squares of a layer of 256 by 256 weights, 95 % sparse, masks that move by SET.
Under `ray` clients are played by Flower's engine in processes of its own; under `process` by this one, in turn. Memory
is the resident set of this process and of all that it has started, sampled; pages that they share count for each.
"""

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sparse_plugins.fed.flower import LocalGrid, sparse_mod

SIDE = 256
EXAMPLES = 64

client = ClientApp(mods=[sparse_mod])


@client.train()
def train(message: Message, context: Context) -> Message:
    """A step of gradient descent on data that follow from the node's number."""
    w = message.content.array_records["arrays"]["w"].numpy()
    x, noise = np.random.default_rng(context.node_id).normal(size=(2, EXAMPLES, SIDE)).astype(np.float32)
    error = x @ w - (x + 0.1 * noise)
    trained = w - np.float32(0.05) * (x.T @ error) / np.float32(EXAMPLES)
    metrics = MetricRecord({"num-examples": EXAMPLES, "loss": float(np.square(error).mean())})
    content: dict[str, Any] = {"arrays": ArrayRecord({"w": Array(trained)}), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


def serve(grid: Grid, nodes: int, rounds: int) -> dict[str, Any]:
    """Runs the server, and tells what each round took.

    Args:
        grid: The nodes.
        nodes: How many there are, all of which train in every round.
        rounds: How many rounds.
    """
    from sparse_plugins import core
    from sparse_plugins.fed.flower import SparseStrategy

    updater = core.create_updater_from_config(
        algorithm="set",
        sparsity=0.95,
        dist_type="uniform",
        update_freq=1,
        update_start_step=1,
        update_end_step=rounds,
        step_unit="round",
    )
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy, ends = SparseStrategy(inner, updater, run="simulation"), [time.perf_counter()]

    def watch(number: int, arrays: ArrayRecord) -> MetricRecord:
        ends.append(time.perf_counter())
        return MetricRecord({"used": int(np.count_nonzero(arrays["w"].numpy()))})

    first = ArrayRecord({"w": Array(np.full((SIDE, SIDE), 1e-3, np.float32))})
    result = strategy.start(grid, first, rounds, 3600, evaluate_fn=watch)
    losses = [float(str(metrics["loss"])) for metrics in result.train_metrics_clientapp.values()]
    total = strategy.ledger.total()
    return {
        "seconds": np.diff(ends)[1:].tolist(),
        "losses": losses,
        "valid": sum(entry.status == "ok" for entry in strategy.ledger),
        "up": total.up,
        "down": total.down,
    }


class PeakMemory:
    """Samples the memory of this process and of all that it has started; use it in a `with` block."""

    def __enter__(self) -> "PeakMemory":
        self.bytes, self.processes, self._over = 0, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *told: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.5):
            resident = _resident(os.getpid())
            if sum(resident) > self.bytes:
                self.bytes, self.processes = sum(resident), len(resident)


def _resident(root: int) -> list[int]:
    """Bytes of a process and of its offspring."""
    parents, pages = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name of a program stands in brackets and may hold spaces.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
        except (OSError, IndexError):  # it has ended
            continue
    found, front = [], {root}
    while front:
        found += [pages[number] for number in front if number in pages]
        front = {number for number, parent in parents.items() if parent in front}
    return [count * os.sysconf("SC_PAGE_SIZE") for count in found]


def _simulated(nodes: int, rounds: int, cores: float) -> dict[str, Any]:
    from flwr.simulation import run_simulation

    told: dict[str, Any] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        told.update(serve(grid, nodes, rounds))

    resources = {"client_resources": {"num_cpus": cores, "num_gpus": 0.0}}
    run_simulation(server_app=server, client_app=client, num_supernodes=nodes, backend_config=resources)  # type: ignore[arg-type]
    if not told:
        raise RuntimeError("the simulation ended without a result; what went wrong stands above.")
    return told


def main() -> None:
    """Prints what the run took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000, help="number of simulated clients")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; every client trains in each")
    parser.add_argument("--engine", choices=("ray", "process"), default="ray", help="what plays the clients")
    parser.add_argument("--cores", type=float, default=1.0, help="CPU cores of a client under Ray")
    options = parser.parse_args()
    started = time.perf_counter()
    with PeakMemory() as memory:
        if options.engine == "ray":
            told = _simulated(options.nodes, options.rounds, options.cores)
        else:
            told = serve(LocalGrid(client, options.nodes), options.nodes, options.rounds)
    wall = time.perf_counter() - started
    print(json.dumps(told))
    print("| nodes | engine | s | s a round | MB at peak | processes | valid updates | MB up | of dense |")
    print("|---|---|---|---|---|---|---|---|---|")
    dense = 4 * SIDE * SIDE * options.nodes * options.rounds
    print(
        f"| {options.nodes} | {options.engine} | {wall:.0f} | {np.mean(told['seconds']):.1f} | "
        f"{memory.bytes / 1e6:.0f} | {memory.processes} | {told['valid']} | {told['up'] / 1e6:.1f} | "
        f"{told['up'] / dense:.4f} |"
    )


if __name__ == "__main__":
    main()
