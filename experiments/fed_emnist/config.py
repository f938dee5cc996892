"""Settings of the federated study. A field carries its help text; `cli` makes the command line from them."""

import dataclasses
import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.harness.cells import DENSE, grid
from experiments.harness.settings import flag, flag_name
from sparse_plugins import core
from sparse_plugins.fed import datasets, growth
from sparse_plugins.wire.value_codes import DTYPES


class Run(NamedTuple):
    """One training run of the study.

    Attributes:
        algorithm: name of an updater; behind a colon there may be what says which weights grow, as in `rigl:dense`.
        sparsity: target fraction of zeros.
        seed: of everything in it.
    """

    algorithm: str
    sparsity: float
    seed: int

    def __str__(self) -> str:
        if self.algorithm == DENSE:
            return f"dense, seed {self.seed}"
        return f"{self.algorithm} at {100 * self.sparsity:.4g} %, seed {self.seed}"

    @property
    def updater(self) -> str:
        """Name of the updater."""
        return self.algorithm.partition(":")[0]

    @property
    def growth(self) -> str | None:
        """Protocol of `fed.growth`; None if it is the updater's own."""
        return self.algorithm.partition(":")[2] or None

    def seed_for(self, use: str) -> int:
        """A seed for one use, such as `model`: other uses and other runs' seeds get unrelated numbers."""
        words = np.random.SeedSequence([self.seed, zlib.crc32(use.encode())]).generate_state(1)
        return int(words[0]) >> 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is trained, how, and where the results go; checked when built.

    Raises:
        ValueError: a setting is out of its range, or an updater refuses it; the message says what is allowed.
    """

    dataset: str = flag("handwriting to train on", choices=datasets.NAMES, default="digits")
    cache_dir: str | None = flag("folder of EMNIST's two sqlite files", default=None)
    only_digits: bool = flag("of EMNIST and strokes, only the 10 digit classes", bool, default=False)
    num_writers: int | None = flag("of strokes, 1 to 10000; the other data sets have their own", int)
    model: str = flag("dense: 784-200-200, conv: FedJAX's EMNIST network", choices=("dense", "conv"))
    algorithms: tuple[str, ...] = flag(
        f"of: {', '.join(core.all_algorithm_names())}; those that grow weights by gradients may be told how clients"
        f" say them, as in rigl:dense, of: {', '.join(growth.PROTOCOLS)}",
        nargs="+",
        default=(
            DENSE,
            "random",
            "magnitude",
            "saliency",
            "global_magnitude",
            "magnitude_ste",
            "static_sparse",
            "set",
            "rigl",
        ),
    )
    sparsities: tuple[float, ...] = flag(
        "target fraction of zeros in the weight matrices, 0 to 1; several train each algorithm at each",
        float,
        nargs="+",
        default=(0.8,),
    )
    seeds: tuple[int, ...] = flag("0 or more; several train everything once with each", int, nargs="+")
    distribution: str = flag("of the sparsity over the layers", choices=("erk", "uniform"))
    structure: str = flag("unstructured, n:m such as 2:4, or a block such as 4x4", default="unstructured")
    rounds: int = flag("federated rounds, 1 or more", int)
    clients_per_round: int = flag("writers drawn per round, 1 up to all there are", int)
    batch_size: int = flag("images per client step, 1 or more", int, default=32)
    local_epochs: int = flag("passes of a client over its images per round, 1 or more", int, default=1)
    client_learning_rate: float = flag("of the clients' SGD, above 0", float)
    server_learning_rate: float = flag("of the server's Adam in the first round, above 0", float)
    server_schedule: str = flag(
        "the server's learning rate stays constant, or falls to 0 in the last round as a cosine",
        choices=("constant", "cosine"),
    )
    server_epsilon: float = flag("of the server's Adam, above 0", float, default=1e-4)
    update_start: int = flag("round from which masks change, counted from 0", int)
    update_end: int = flag("round of the last mask change, counted from 0", int)
    update_every: int = flag("rounds from one mask change to the next, 1 or more", int)
    drop_fraction: float = flag(
        "fraction of the weights that set and rigl exchange at first, 0 to 1; falls to 0 as a cosine",
        float,
        default=0.3,
    )
    wire: str = flag("widest number format of parameters and updates in messages", choices=DTYPES, default="float32")
    backend: str = flag(
        "jit: FedJAX's own, a call per batch; scan: a call per client", choices=("jit", "scan"), default="scan"
    )
    evaluate_every: int = flag("rounds from one evaluation to the next, 1 or more", int)
    checkpoint_every: int = flag("rounds from one checkpoint of a run to the next; 0 writes none", int)
    jobs: int = flag("runs that are trained at once, each in a process of its own", int, default=1)
    output: str = flag("folder that holds the results of every study", default="runs")
    name: str = flag("folder of this study in it; must not exist yet")

    def __post_init__(self) -> None:
        for field in (
            *("rounds", "clients_per_round", "batch_size", "local_epochs"),
            *("update_every", "evaluate_every", "jobs"),
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{flag_name(field)} must be 1 or more, got {getattr(self, field)}.")
        if self.checkpoint_every < 0:
            raise ValueError(f"--checkpoint-every must be 0 or more, got {self.checkpoint_every}.")
        if (self.num_writers is not None) != (self.dataset == "strokes"):
            raise ValueError(f"--num-writers is for --dataset=strokes only, got {self.num_writers} for {self.dataset}.")
        for field in ("client_learning_rate", "server_learning_rate", "server_epsilon"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{flag_name(field)} must be finite and above 0, got {getattr(self, field)}.")
        for field in ("algorithms", "sparsities", "seeds"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{flag_name(field)} takes one value or more, each once, got {list(values)}.")
        if min(self.seeds) < 0:
            raise ValueError(f"--seeds must be 0 or more, got {min(self.seeds)}.")
        if not 0 <= self.update_start <= self.update_end < self.rounds:
            raise ValueError(
                f"Masks can't change from round {self.update_start} to {self.update_end} of {self.rounds}, counted"
                " from 0: choose 0 <= --update-start <= --update-end < --rounds."
            )
        for run in self.runs():
            updater = self.updater(run)
            growth.growth_protocol(updater, run.growth)
            if run.growth and not growth.grows_by_gradient(updater):
                raise ValueError(
                    f"{run.updater} grows no weights by gradients, so there is nothing to say in {run.algorithm}: write"
                    f" {run.updater}."
                )

    def runs(self) -> Iterator[Run]:
        """Every run of the study. Dense training has no sparsity, so it comes once per seed."""
        for algorithm, sparsity in grid(self.algorithms, self.sparsities):
            for seed in self.seeds:
                yield Run(algorithm, sparsity, seed)

    def updater(self, run: Run) -> core.BaseUpdater:
        """The sparsity algorithm of one run, which counts in rounds."""
        return core.create_updater_from_config(
            algorithm=run.updater,
            sparsity=run.sparsity,
            dist_type=self.distribution,
            sparsity_type=self.structure,
            step_unit="round",
            update_freq=self.update_every,
            update_start_step=self.update_start,
            update_end_step=self.update_end,
            drop_fraction=self.drop_fraction,
            rng_seed=run.seed_for("updater"),
        )
