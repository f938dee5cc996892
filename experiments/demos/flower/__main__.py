"""`python -m experiments.demos.flower`: digits on Flower's own processes, dense and sparse: accuracy and bytes.

A SuperLink and three SuperNodes are started on this machine, on free ports. The same app runs twice: with FedAvg as it
is, and in `SparseStrategy`. Bytes are counted on the connections, with all that Flower and HTTP put around a payload.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from experiments.demos.flower.processes import Federation
from experiments.demos.flower.wire_meter import WireMeter

_HERE = "experiments.demos.flower"


def run(folder: Path, name: str, sparsity: float, nodes: int, rounds: int, zstd: bool = False) -> dict[str, Any]:
    """One run on a federation of its own: accuracies by round, and bytes on the wire and in the ledger."""
    client = f"{_HERE}.client" if sparsity else f"{_HERE}.dense_client"
    config: dict[str, int | float | str] = {
        "sparsity": sparsity,
        "nodes": nodes,
        "rounds": rounds,
        "zstd": int(zstd),
        "folder": str(folder.resolve() / name),
    }
    with contextlib.ExitStack() as stack:
        meters: list[WireMeter] = []

        def metered(port: int) -> int:
            meters.append(stack.enter_context(WireMeter(port)))
            return meters[-1].port

        federation = stack.enter_context(Federation(folder / name / "processes", nodes, through=metered))
        time.sleep(2)  # by then nodes have registered
        before = [(meter.up, meter.down) for meter in meters]
        log = federation.run_app(f"digits-{name}", f"{_HERE}.server", client, seconds=1800, **config)
        up = sum(meter.up - start[0] for meter, start in zip(meters, before, strict=True))
        down = sum(meter.down - start[1] for meter, start in zip(meters, before, strict=True))
    results = folder / name / "accuracies.json"
    if not results.exists():
        raise RuntimeError(f"the run {name!r} failed; the end of its log:\n{log[-3000:]}")
    accuracies = {int(number): value for number, value in json.loads(results.read_text()).items()}
    return {"name": name, "accuracies": accuracies, "up": up, "down": down}


def report(folder: Path, rows: list[dict[str, Any]]) -> str:
    """The table; the picture goes to the folder."""
    from matplotlib.figure import Figure

    dense = rows[0]
    lines = ["| run | accuracy | uplink, MB | of dense | downlink, MB | of dense |", "|---|---|---|---|---|---|"]
    for row in rows:
        last = row["accuracies"][max(row["accuracies"])]
        shares = [row[way] / dense[way] for way in ("up", "down")]
        lines.append(
            f"| {row['name']} | {last:.1%} | {row['up'] / 1e6:.2f} | {shares[0]:.3f} | {row['down'] / 1e6:.2f} | "
            f"{shares[1]:.3f} |"
        )
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        rounds = sorted(row["accuracies"])
        megabytes = [row["up"] / 1e6 * number / max(rounds[-1], 1) for number in rounds]
        axes.plot(megabytes, [row["accuracies"][number] for number in rounds], marker="o", label=row["name"])
    axes.set(xlabel="uplink on the wire, MB", ylabel="accuracy on digits of other writers", xscale="symlog")
    axes.legend()
    figure.savefig(folder / "flower.png", dpi=150)
    table = "\n".join(lines)
    (folder / "table.md").write_text(f"{table}\n")
    return table


def main() -> int:
    """Runs both, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3, help="number of SuperNodes")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sparsity", type=float, default=0.95, help="target sparsity of the sparse run")
    parser.add_argument("--zstd", action="store_true", help="compress its messages, without loss; needs zstandard")
    parser.add_argument("--out", type=Path, default=Path("runs") / time.strftime("flower-%Y%m%d-%H%M%S"))
    options = parser.parse_args()
    if not 0 < options.sparsity < 1 or options.nodes < 2 or options.rounds < 1:
        parser.error("give a sparsity between 0 and 1, 2 nodes or more, and 1 round or more")
    options.out.mkdir(parents=True, exist_ok=False)
    settings = (options.nodes, options.rounds)
    rows = [
        run(options.out, "dense", 0.0, *settings),
        run(options.out, "sparse", options.sparsity, *settings, zstd=options.zstd),
    ]
    print(report(options.out, rows))
    print(f"\nTable, picture, ledger and the processes' logs: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
