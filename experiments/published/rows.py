"""Every row: its commands, in the order in which they answer most, what it needs and what it is expected to take."""

from typing import NamedTuple

STUDY_PACKAGES = ("jax", "optax", "numpy", "haiku")


class Row(NamedTuple):
    """One line of a published table, or of a table of costs.

    Attributes:
        about: What it answers.
        commands: Modules and their flags; studies among them are resumed where they stopped.
        needs: Modules that have to be there.
        expected: Said before it was run on a GPU, with what it follows from.
    """

    about: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]
    expected: str


_CONV = (
    "experiments.fed_emnist",
    "--dataset=strokes",
    "--model=conv",
    "--num-writers=3400",
    "--rounds=1000",
    "--clients-per-round=50",
    "--update-every=10",
    "--evaluate-every=100",
    "--checkpoint-every=50",
    "--seed=0",
    "--algorithms",
    "no_prune",
    "magnitude",
    "rigl",
    "static_sparse",
    "set",
    "saliency",
    "random",
    "global_magnitude",
    "magnitude_ste",
)
_MSPACMAN = (
    "experiments.atari",
    "--seeds=1",
    "--steps=2500000",
    "--algorithms",
    "no_prune",
    "magnitude",
    "rigl",
    "static_sparse",
)

ROWS = {
    "correct": Row(
        "Are masks, counts and updates on an accelerator those of a CPU?",
        (("pytest", "-q", "-m", "not thorough", "tests/core", "tests/contract", "-p", "no:cacheprovider"),),
        ("jax", "optax", "numpy", "pytest", "hypothesis"),
        "20 minutes: compiling, as on a CPU",
    ),
    "costs": Row(
        "What do a step and a mask change cost there, and a change of a sharded model?",
        (
            ("experiments.benchmarks.step",),
            ("experiments.benchmarks.masks",),
            ("experiments.benchmarks.large", "--parameters=300"),
        ),
        ("jax", "optax", "numpy"),
        "5 minutes; a step without a mask change within 2 % of dense, as it adds 1/32 of the bytes",
    ),
    "shrunk": Row(
        "How much faster are networks whose pruned channels have left?",
        (("experiments.benchmarks.shrink",),),
        ("jax", "optax", "numpy", "flax"),
        "3 minutes; less than on a CPU, as small matrices do not fill an accelerator: 1.3 times at half the channels",
    ),
    "federated": Row(
        "JaxPruner's federated table at its number of clients and rounds, on strokes: 50 clients, 1,000 rounds, 80 %",
        (_CONV,),
        (*STUDY_PACKAGES, "fedjax"),
        "9 cells; a round is 50 clients of about 20 small steps, at 0.2 ms each 200 s a cell, 40 minutes with tests",
    ),
    "mspacman": Row(
        "JaxPruner's DQN on MsPacman at 98 %, a quarter of the frames, four of seven algorithms at once",
        (("experiments.atari", "--seeds=1", "--measure"), _MSPACMAN),
        (*STUDY_PACKAGES, "ale_py"),
        "an hour at 3,000 environment steps a second over four runs; --measure tells within a minute",
    ),
}
