"""The rows of the federated study, and how they are read."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.harness.cells import grid
from experiments.harness.layout import Curve, Layout, Measure, Record, Row, Settings, differences, last
from experiments.harness.tables.published import FEDERATED

# JaxPruner's federated study (Lee et al., 2023).
PAPER = {
    "dataset": ("emnist", "for data"),
    "model": ("conv", "for a network"),
    "rounds": (1000, "rounds"),
    "clients_per_round": (50, "clients per round"),
    "batch_size": (32, "images in a client's batch"),
    "local_epochs": (1, "local epochs"),
    "client_learning_rate": (10**-1.5, "as the clients' learning rate"),
    "server_learning_rate": (10**-2.5, "as the server's learning rate"),
    "server_schedule": ("constant", "as its schedule"),
    "server_epsilon": (1e-4, "as its epsilon"),
    "update_start": (250, "as the first round that changes masks"),
    "update_end": (750, "as the last one"),
    "update_every": (10, "rounds between two mask changes"),
    "distribution": ("uniform", "for the sparsity over the layers"),
    "structure": ("unstructured", "for a structure"),
    "drop_fraction": (0.1, "as the first drop fraction of set and rigl"),
    "wire": ("float32", "for the values in messages"),
}
DENSE_CLIENTS = "Clients train inside the mask; the paper's train all weights, from the sparse ones that they get."
NETWORKS = {"dense": "784-200-200 network", "conv": "convolutional network"}
DISTRIBUTIONS = {"erk": "ERK", "uniform": "uniform"}


# Accuracy, and loss in nats, on all test images; loss on training images of the writers of the first round; zeros in
# the weight matrices that clients get; bytes to and from all clients so far, growth signals included.
NUMBERS = {
    "test_accuracy": float,
    "test_loss": float,
    "train_loss": float,
    "measured_sparsity": float,
    "down_bytes": int,
    "up_bytes": int,
}


def layout(record: Record) -> Layout:
    """The layout of a study.

    Args:
        record: What its `config.json` holds.
    """
    settings = record["settings"]
    messages = settings["rounds"] * settings["clients_per_round"]
    return Layout(
        title=f"Federated averaging on {data_name(settings)}",
        about=about(settings),
        cell={"algorithm": "name", "sparsity": "sparsity"},
        numbers=NUMBERS,
        cells=tuple(grid(settings["algorithms"], settings["sparsities"])),
        seeds=tuple(settings["seeds"]),
        step="round",
        step_label="round",
        is_last=lambda row: row.round == settings["rounds"],
        scores=(
            Measure("test accuracy, %", last("test_accuracy"), 100),
            Measure("since the last change, %", _since(settings["update_end"]), 100),
            Measure("test loss", last("test_loss"), digits=4),
            Measure("down, kB", last("down_bytes"), 1 / messages / 1000, 1),
            Measure("down, % of dense", _of_dense("down_bytes", messages, record)),
            Measure("up, kB", last("up_bytes"), 1 / messages / 1000, 1),
            Measure("up, % of dense", _of_dense("up_bytes", messages, record)),
        ),
        sparsity=Measure("zeros", last("measured_sparsity"), digits=4),
        curve=Curve("test accuracy, %", "test_accuracy", 100),
        traffic=(
            Curve("megabytes from the server to all clients", "down_bytes", 1e-6),
            Curve("megabytes from all clients to the server", "up_bytes", 1e-6),
        ),
        changes=(settings["update_start"], settings["update_end"]),
        published=FEDERATED,
        deviations=tuple(deviations(settings)),
        notes=(
            "Test accuracy and loss are those of the model that the clients get after the last round, on all test"
            " images; since the last change is the mean of all accuracies since then, dense training's over the same"
            " rounds: one round's clients move the model. Zeros is the fraction of zeros in its weight matrices. Down"
            " and up are bytes per client and round over the whole training: lengths of the messages that were used,"
            f" masks and growth signals included, values as {settings['wire']}; of dense is relative to all parameters"
            " in float32,"
            f" {parameter_bytes(settings, record.get('classes')) / 1000:.1f} kB. What each client sent and got is in"
            " the `ledger.csv` of its run."
        ),
    )


def about(settings: Settings) -> str:
    """What was trained."""
    dealt, who = "", "clients" if settings["dataset"] == "idx" else "writers"
    if settings["dataset"] == "idx":
        how = {"dirichlet": f"Dirichlet({settings['alpha']:g})", "shards": f"{settings['shards']} shards each"}
        dealt = f" Images are dealt to {settings['num_writers']} clients by {how[settings['partition']]}."
    return (
        f"{NETWORKS[settings['model']]}, {settings['rounds']} rounds of {settings['clients_per_round']} {who},"
        f" {DISTRIBUTIONS[settings['distribution']]} sparsity, masks change from round {settings['update_start']} to"
        f" {settings['update_end']}."
        + dealt
        + (" Clients train all weights from the sparse ones they get." if settings.get("clients") == "dense" else "")
        + (" Initial weights are scaled to the inputs that are kept." if settings.get("rescale") else "")
        + (" The last layer stays dense." if settings.get("dense_output") else "")
    )


def data_name(settings: Settings) -> str:
    """The data set; that of files is called as their folder."""
    return Path(settings["data_dir"]).name if settings["dataset"] == "idx" else str(settings["dataset"])


def deviations(settings: Settings) -> list[str]:
    """What is not as in the paper."""
    return [
        *differences(settings, PAPER),
        *([DENSE_CLIENTS] if settings.get("clients", "masked") == "masked" else []),
        "Weights of magnitude_ste are sparse for clients and tests, too; the paper's trainer hands out and tests the"
        " dense ones behind them, so that its number is no sparse network's.",
        "The mean update of a round that changes masks is applied; the paper's program leaves it out for set and rigl.",
    ]


def parameter_bytes(settings: Settings, classes: int | None = None) -> int:
    """Bytes of all parameters in float32.

    Args:
        settings: Settings of a study.
        classes: Outputs of the network; None for those of the data sets that have their own.

    Example:
        >>> parameter_bytes({"model": "dense", "dataset": "digits", "only_digits": False})
        796840
    """
    classes = classes or (10 if settings["only_digits"] or settings["dataset"] == "digits" else 62)
    inner = {"dense": 784 * 200 + 200 + 200 * 200 + 200, "conv": 9 * 32 + 32 + 9 * 32 * 64 + 64 + 9216 * 128 + 128}
    outputs = {"dense": 200, "conv": 128}[settings["model"]] * classes + classes
    return 4 * (inner[settings["model"]] + outputs)


def _since(change: int) -> Callable[[Sequence[Row]], float]:
    """Mean accuracy over the evaluations behind the last round that may change masks, counted from 0."""
    return lambda rows: statistics.fmean(row.test_accuracy for row in rows if row.round > change)


def _of_dense(field: str, messages: int, record: Record) -> Callable[[Sequence[Row]], float | None]:
    whole = messages * parameter_bytes(record["settings"], record.get("classes"))
    return lambda rows: 100 * getattr(rows[-1], field) / whole
