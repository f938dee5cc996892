"""Settings of the federated study."""

import dataclasses
import zlib
from typing import Any

import numpy as np

from experiments.fed_emnist.layout import PAPER
from experiments.harness.cells import DENSE, Cell, Run
from experiments.harness.settings import SEEDS, GridSettings, flag
from experiments.harness.tables.published import ALGORITHMS
from sparse_plugins import core
from sparse_plugins.fed import growth
from sparse_plugins.wire.value_codes import DTYPES

# JaxPruner's federated study, and how often it is looked at here.
_PUBLISHED: dict[str, Any] = {
    **{name: PAPER[name][0] for name in ("model", "distribution", "rounds", "clients_per_round", "update_every")},
    **{name: PAPER[name][0] for name in ("client_learning_rate", "server_learning_rate", "server_schedule")},
    **{"evaluate_every": 50, "checkpoint_every": 50, "num_writers": None},
}
_SMALLER = {"seeds": (0, 1, 2), "clients_per_round": 10, "update_every": 5}
# Defaults that depend on the dataset.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "dense",
        "distribution": "erk",
        "seeds": (0, 1, 2),
        "rounds": 100,
        "clients_per_round": 13,
        "client_learning_rate": 0.1,
        "server_learning_rate": 10**-2.25,
        "server_schedule": "cosine",
        "update_every": 5,
        "evaluate_every": 4,
        "checkpoint_every": 0,
        "num_writers": None,
    },
    "strokes": {**_PUBLISHED, **_SMALLER, "model": "dense", "rounds": 200, "evaluate_every": 10, "num_writers": 200},
    "emnist": {**_PUBLISHED, "seeds": (0,)},
    "idx": {**_PUBLISHED, **_SMALLER, "rounds": 300, "evaluate_every": 20, "num_writers": 100},
}
OUTPUT = {"dense": "linear_2/w", "conv": "conv_dropout_module/linear_1/w"}  # the last kernels


def _by_dataset(field: str, text: str, value_type: type = str, **options: Any) -> Any:
    """A flag whose default is that of the data set."""
    shown = ", ".join(f"{_plain(preset[field])} for {name}" for name, preset in PRESETS.items())
    return flag(text, value_type, default=None, shown=shown, **options)


def _plain(default: Any) -> str:
    if default is None:
        return "none"
    values = default if isinstance(default, tuple) else (default,)
    return " ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def seed_for(seed: int, use: str) -> int:
    """A seed for one use, such as `model`: other uses and other runs' seeds get unrelated numbers."""
    words = np.random.SeedSequence([seed, zlib.crc32(use.encode())]).generate_state(1)
    return int(words[0]) >> 1


def growth_of(cell: Cell) -> str | None:
    """Protocol of `fed.growth`, which may stand behind an algorithm and a colon; None if it is the updater's own."""
    return cell.name.partition(":")[2] or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FederatedSettings(GridSettings):
    """What is trained, how, and where the results go; checked when built.

    Raises:
        ValueError: a setting is out of its range, or an updater refuses it; the message says what is allowed.
    """

    dataset: str = flag(
        "handwriting to train on; idx: files of MNIST's format, such as MNIST, EMNIST, KMNIST or Fashion-MNIST",
        choices=tuple(PRESETS),
        default="digits",
    )
    data_dir: str | None = flag("folder of the four files of idx, compressed by gzip or not", default=None)
    partition: str = flag(
        "how the images of idx are dealt to clients: by shares of every class that a Dirichlet distribution draws, or"
        " in shards of few classes",
        choices=("dirichlet", "shards"),
        default="dirichlet",
    )
    alpha: float = flag(
        "concentration of the Dirichlet distribution, above 0; a small one leaves clients few classes",
        float,
        default=0.3,
    )
    shards: int = flag("shards of each client, 1 or more", int, default=2)
    cache_dir: str | None = flag("folder of EMNIST's two sqlite files", default=None, shown="~/.cache/fedjax")
    only_digits: bool = flag("only the 10 digit classes of EMNIST and strokes", bool, default=False)
    num_writers: int | None = _by_dataset(
        "num_writers", "writers of strokes, 1 to 10000, or clients of idx; the other data sets come with theirs", int
    )
    model: str = _by_dataset("model", "dense: 784-200-200, conv: FedJAX's EMNIST network", choices=("dense", "conv"))
    algorithms: tuple[str, ...] = flag(
        f"algorithms to train, of: {', '.join(core.all_algorithm_names())}; behind those that grow weights by gradients"
        f" may stand how clients send them, as in rigl:dense, of: {', '.join(growth.PROTOCOLS)}",
        nargs="+",
        default=(DENSE, *ALGORITHMS),
    )
    sparsities: tuple[float, ...] = flag(
        "target fraction of zeros in the weight matrices, 0 to 1; several train each algorithm at each",
        float,
        nargs="+",
        default=(0.8,),
    )
    seeds: tuple[int, ...] = _by_dataset("seeds", SEEDS, int, nargs="+")
    distribution: str = _by_dataset("distribution", "of the sparsity over the layers", choices=("erk", "uniform"))
    structure: str = flag("unstructured, n:m such as 2:4, or a block such as 4x4", default="unstructured")
    dense_output: bool = flag("leave the last layer dense", bool, default=False)
    rounds: int = _by_dataset("rounds", "federated rounds, 1 or more", int)
    clients_per_round: int = _by_dataset("clients_per_round", "writers drawn per round, 1 up to all there are", int)
    batch_size: int = flag("images per client step, 1 or more", int, default=32)
    local_epochs: int = flag("passes of a client over its images per round, 1 or more", int, default=1)
    client_learning_rate: float = _by_dataset(
        "client_learning_rate", "learning rate of the clients' SGD, above 0", float
    )
    server_learning_rate: float = _by_dataset(
        "server_learning_rate", "of the server's Adam in the first round, above 0", float
    )
    server_schedule: str = _by_dataset(
        "server_schedule",
        "the server's learning rate stays constant, or falls to 0 in the last round as a cosine",
        choices=("constant", "cosine"),
    )
    server_epsilon: float = flag("epsilon of the server's Adam, above 0", float, default=1e-4)
    update_start: int = flag(
        "round of the first mask update, counted from 0", int, default=None, shown="a quarter of the rounds"
    )
    update_end: int = flag(
        "round of the last mask update, counted from 0", int, default=None, shown="three quarters of the rounds"
    )
    update_every: int = _by_dataset("update_every", "rounds from one mask change to the next, 1 or more", int)
    clients: str = flag(
        "masked: train inside the mask; dense: train all weights from the sparse ones they get, as JaxPruner's",
        choices=("masked", "dense"),
        default="masked",
    )
    rescale: bool = flag("scale initial weights of what starts sparse to the inputs that are kept", bool, default=False)
    wire: str = flag("widest number format of parameters and updates in messages", choices=DTYPES, default="float32")
    backend: str = flag(
        "jit: FedJAX's own; scan: fed.ScanBackend, the same in less time", choices=("jit", "scan"), default="scan"
    )
    evaluate_every: int = _by_dataset("evaluate_every", "rounds from one evaluation to the next, 1 or more", int)
    checkpoint_every: int = _by_dataset(
        "checkpoint_every", "rounds from one checkpoint of a run to the next; 0 writes none", int
    )
    jobs: int = flag("runs that are trained at once, each in a process of its own", int, default=1)

    def __post_init__(self) -> None:
        self.fill_in(PRESETS[self.dataset])
        self.fill_in({"update_start": self.rounds // 4, "update_end": 3 * self.rounds // 4})
        super().__post_init__()
        self.at_least(1, "rounds", "clients_per_round", "batch_size", "local_epochs", "update_every")
        self.at_least(1, "evaluate_every", "jobs")
        self.at_least(0, "checkpoint_every")
        if (self.num_writers is not None) != (self.dataset in ("strokes", "idx")):
            raise ValueError(
                f"--num-writers is for --dataset=strokes and idx only, got {self.num_writers} for {self.dataset}."
            )
        if (self.data_dir is not None) != (self.dataset == "idx"):
            raise ValueError(
                "--dataset=idx and --data-dir=FOLDER, which holds its files, go together: give both or none."
            )
        self.at_least(1, "shards")
        self.positive("alpha")
        self.positive("client_learning_rate", "server_learning_rate", "server_epsilon")
        if not 0 <= self.update_start <= self.update_end < self.rounds:
            raise ValueError(
                f"Masks can't change from round {self.update_start} to {self.update_end} of {self.rounds}, counted"
                " from 0: choose 0 <= --update-start <= --update-end < --rounds."
            )
        for cell in self.cells():
            updater = self.updater(Run(cell, 0))
            growth.growth_protocol(updater, growth_of(cell))
            name = cell.name.partition(":")[0]
            if growth_of(cell) and self.clients == "dense":
                raise ValueError(
                    f"--clients=dense grows by what clients trained, so there is nothing more to say in {cell.name}:"
                    f" write {name}."
                )
            if growth_of(cell) and not updater.grows_by_gradient:
                raise ValueError(
                    f"{name} grows no weights by gradients, so there is nothing to say in {cell.name}: write {name}."
                )

    @property
    def data_options(self) -> dict[str, Any]:
        """What `fed.datasets.load` takes besides the name."""
        if self.dataset == "idx":
            options = {name: getattr(self, name) for name in ("data_dir", "partition", "alpha", "shards")}
            return {**options, "num_clients": self.num_writers}
        writers = {"num_writers": self.num_writers} if self.dataset == "strokes" else {}
        return {"only_digits": self.only_digits, "cache_dir": self.cache_dir, **writers}

    def updater(self, run: Run) -> core.BaseUpdater:
        """The sparsity algorithm of one run, which counts in rounds."""
        return core.create_updater_from_config(
            algorithm=run.cell.name.partition(":")[0],
            sparsity=run.cell.sparsity,
            dist_type=self.distribution,
            rules=[(OUTPUT[self.model], None)] if self.dense_output else [],
            sparsity_type=self.structure,
            step_unit="round",
            update_freq=self.update_every,
            update_start_step=self.update_start,
            update_end_step=self.update_end,
            drop_fraction=self.drop_fraction,
            rng_seed=seed_for(run.seed, "updater"),
        )
