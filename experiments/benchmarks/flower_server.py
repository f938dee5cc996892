"""What a sparse Flower server and its clients' mod cost: milliseconds by size of the model, memory by number of nodes.

    python -m experiments.benchmarks.flower_server --millions 0.3 1.2 4.8 --nodes 8 64

Updates of 95 % sparse models, made by the mod itself, are read, checked and summed up by the server. Nodes are played
one after another by this process: the time of an update is the server's alone, and each number of nodes has a process
of its own, whose peak is read from the operating system.
"""

import argparse
import functools
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from sparse_plugins import core
from sparse_plugins.fed.flower import SparseStrategy, sparse_mod

SPARSITY = 0.95
REPEATS, FASTEST_OF = 7, 50


class OneProcess:
    """As much of a grid as a strategy asks for; nodes answer when they are asked for their reply."""

    def __init__(self, nodes: int) -> None:
        self.nodes = range(1, nodes + 1)
        self.run = type("Run", (), {"run_id": 1})

    def get_node_ids(self) -> list[int]:
        """All nodes."""
        return list(self.nodes)


def model(millions: float) -> ArrayRecord:
    """A model of three square layers and their biases."""
    side, rng = int((millions * 1e6 / 3) ** 0.5), np.random.default_rng(0)
    arrays: dict[str, Any] = {f"w{place}": rng.normal(size=(side, side)).astype(np.float32) for place in range(3)}
    return ArrayRecord({name: Array(x) for name, x in {**arrays, "b": np.ones(side, np.float32)}.items()})


def sparse(nodes: int, resends_masks: bool = True) -> SparseStrategy:
    """FedAvg with static masks; nodes of this process hold none, unless they are remembered."""
    updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=SPARSITY))
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    return SparseStrategy(inner, updater, resends_masks=resends_masks)


def trained(message: Message, context: Context) -> Message:
    """What a training function returns that takes no time: the model, moved a little."""
    arrays = {name: array.numpy() * np.float32(1.01) for name, array in message.content.array_records["arrays"].items()}
    content = {"arrays": ArrayRecord({name: Array(x) for name, x in arrays.items()})}
    return Message(RecordDict({**content, "metrics": MetricRecord({"num-examples": 10})}), reply_to=message)


def replies(orders: Iterable[Message], told: dict[str, Any]) -> Iterable[Message]:
    """Answers, each made when it is asked for; the time of making them is kept apart."""
    for order in orders:
        started, node = time.perf_counter(), order.metadata.dst_node_id
        context = Context(1, node, {}, RecordDict(), {})
        reply = sparse_mod(Message(RecordDict(dict(order.content)), node, "train"), context, trained)
        reply.metadata.__dict__["_src_node_id"] = node
        told["bytes"] = len(reply.content.array_records["arrays"]["payload"].data)
        told["clients"] = told.get("clients", 0) + time.perf_counter() - started
        yield reply


def round_of(strategy: SparseStrategy, first: ArrayRecord, nodes: int, number: int) -> dict[str, Any]:
    """One round, from the model of the round before: seconds of the server, and bytes of an update."""
    told: dict[str, Any] = {}
    strategy.begin(first)
    model, grid = strategy.arrays(), OneProcess(nodes)
    orders = list(strategy.configure_train(number, model, ConfigRecord(), grid))  # type: ignore[arg-type]
    started = time.perf_counter()
    strategy.aggregate_train(number, replies(orders, told))
    return {**told, "server": time.perf_counter() - started - told["clients"]}


def measure_nodes(millions: float, nodes: int) -> None:
    """Prints seconds of a round and the peak of this process."""
    first, strategy = model(millions), sparse(nodes)
    round_of(strategy, first, nodes, 1)  # compiles
    rounds = [round_of(strategy, first, nodes, number) for number in (2, 3)]
    seconds = min(each["server"] for each in rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {nodes} | {1e3 * seconds:.0f} | {1e3 * seconds / nodes:.1f} | {peak:.0f} |", flush=True)


def mod_seconds(first: ArrayRecord) -> np.ndarray:
    """What the mod takes beside the function around which it stands, on a node that holds the masks.

    Returns:
        [rounds, 2]: seconds on the clock, and of a core.
    """
    strategy, context, added = sparse(1, resends_masks=False), Context(1, 1, {}, RecordDict(), {}), []
    now = lambda: np.array([time.perf_counter(), time.thread_time()])  # noqa: E731

    def timed(message: Message, context: Context) -> Message:
        started = now()
        reply = trained(message, context)
        inside.append(now() - started)
        return reply

    for number in range(1, FASTEST_OF + 2):
        (order,) = strategy.configure_train(number, first, ConfigRecord(), OneProcess(1))  # type: ignore[arg-type]
        message, inside = Message(RecordDict(dict(order.content)), 1, "train"), list[np.ndarray]()
        started = now()
        reply = sparse_mod(message, context, timed)
        added.append(now() - started - sum(inside))
        reply.metadata.__dict__["_src_node_id"] = 1
        first, _ = strategy.aggregate_train(number, [reply])  # type: ignore[assignment]
    return np.array(added[1:])  # in the first round it got the masks


def measure_sizes(millions: float) -> None:
    """Prints bytes, what the mod takes beside the function it wraps, and what the server takes for an update."""
    first, strategy = model(millions), sparse(2)
    round_of(strategy, first, 2, 1)
    server = median(round_of(strategy, first, 2, number)["server"] / 2 for number in range(2, 2 + REPEATS))
    (order, _) = strategy.configure_train(99, strategy.arrays(), ConfigRecord(), OneProcess(2))  # type: ignore[arg-type]
    added = mod_seconds(first)
    told: dict[str, Any] = {}
    list(replies([order], told))
    dense = sum(len(array.data) for array in first.values())
    print(
        f"| {millions:g} | {told['bytes'] / 1e3:.0f} | {told['bytes'] / dense:.4f} | "
        + " | ".join(f"{1e3 * seconds:.1f}" for seconds in (*added.min(axis=0), *np.median(added, axis=0)))
        + f" | {1e3 * server:.1f} |",
        flush=True,
    )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[0.3, 1.2, 4.8], help="weights of the model")
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 64], help="nodes of a round")
    parser.add_argument("--single", type=int, help="measure so many nodes in this process")
    options = parser.parse_args()
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    if options.single:
        measure_nodes(options.millions[0], options.single)
        return
    print("| million weights | kB | of dense | ms of the mod: fastest | of a core | median | of a core | server |")
    print("|---|---|---|---|---|---|---|---|")
    for millions in options.millions:
        measure_sizes(millions)
    print(
        "\n1.2 million weights:\n\n| nodes | ms of the server | ms a node | MB at peak |\n|---|---|---|---|", flush=True
    )
    for nodes in options.nodes:
        flags = ["--single", str(nodes), "--millions", "1.2"]
        subprocess.run([sys.executable, "-m", "experiments.benchmarks.flower_server", *flags], check=True)


if __name__ == "__main__":
    main()
