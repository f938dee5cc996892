"""`python -m experiments.atari`: trains DQN on Atari games, dense and sparse, and compares it with published results.

On a GPU machine. What is needed is jax with its GPU plugin, optax and numpy, this repository, ale-py (its ROMs are in
the wheel) and dm-haiku; no gymnasium, TensorFlow, Dopamine or Matplotlib. Where nothing can be installed, carry the
wheels unpacked, made for the Python of that machine (6 MB):

    pip install --no-deps --target carried ale-py dm-haiku jmp tabulate absl-py    # add --python-version if it differs
    export PYTHONPATH=$PWD:$PWD/carried XLA_PYTHON_CLIENT_MEM_FRACTION=0.9

Measure first. It prints the time of emulators, copies, acting and learning, memory and how long the study takes:

    python -m experiments.atari --seeds 1 --measure
    python -m experiments.atari --seeds 1 --measure --as-matmuls yes    # if convolutions of several seeds are slow

Then train; all cells that fit are trained together. Where a command may only last ten minutes, stop it by SIGTERM
early enough for the stretch under way and its checkpoint, and go on with the next command:

    ALGORITHMS="no_prune magnitude rigl static_sparse"
    timeout -s TERM 480 python -m experiments.atari --seeds 1 --steps 2500000 --algorithms $ALGORITHMS --name mspacman
    timeout -s TERM 480 python -m experiments.atari --resume runs/mspacman

Memory: a frame is 7 kB, so a run with the full replay of 1M frames takes 7.1 GB on the device; four such runs together
28 GB, and all seven cells with one seed 50 GB. `--memory-gb` bounds it, by default at four fifths of the device. A
checkpoint holds the replay and is as large; two are kept on disk while a batch is trained, and none after it.
`--capacity` makes all of this smaller. Figures are drawn where Matplotlib is: copy the folder there and run
`python -m experiments.tables FOLDER --write`.

Source: Lee et al., JaxPruner: A Concise Library for Sparsity Research (2023); Obando-Ceron et al., In value-based deep
reinforcement learning, a pruned network is a good network (2024).
"""

import sys
from collections.abc import Sequence

from experiments.atari.config import AtariSettings
from experiments.atari.measure import measure, table
from experiments.atari.plan import described, fitted, plan
from experiments.harness.command import ask, explained, go
from experiments.registry import STUDIES
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study of a command line, the process's own when None, or goes on with one.

    Returns:
        As of `harness.command.main`; 2 also if an emulator broke.
    """
    asked = ask(STUDIES["atari"], AtariSettings, arguments)
    if asked.settings and asked.settings.measure:
        return explained(lambda: _measure(asked.settings), EnvironmentFailure)
    return explained(lambda: go(STUDIES["atari"], AtariSettings, plan, asked), EnvironmentFailure)


def _measure(settings: AtariSettings) -> int:
    config = fitted(settings)
    batches = list(config.batches())
    print(described(config), flush=True)
    print(f"\n{table(config, batches, measure(config, batches[0]))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
