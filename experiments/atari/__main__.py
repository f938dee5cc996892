"""`python -m experiments.atari`: trains DQN on Atari games, dense and sparse, and compares it with published results.

On a GPU machine. What is needed is jax with its GPU plugin, optax and numpy, this repository, ale-py (its ROMs are in
the wheel) and dm-haiku; no gymnasium, TensorFlow, Dopamine or Matplotlib. Where nothing can be installed, carry the
wheels unpacked, made for the Python of that machine (6 MB):

    pip install --no-deps --target carried ale-py dm-haiku jmp tabulate absl-py    # add --python-version if it differs
    export PYTHONPATH=$PWD:$PWD/carried XLA_PYTHON_CLIENT_MEM_FRACTION=0.9

Measure first. It prints the time of emulators, copies, acting and learning, memory and how long the study takes:

    python -m experiments.atari --seeds 1 --measure
    python -m experiments.atari --seeds 1 --measure --as-matmuls yes    # if convolutions of several seeds are slow

Then train; all cells that fit are trained together. Where a command may only last ten minutes, give it a budget that
leaves time for the stretch under way and its checkpoint, and go on with the next command:

    ALGORITHMS="no_prune magnitude rigl static_sparse"
    python -m experiments.atari --seeds 1 --steps 2500000 --algorithms $ALGORITHMS --name mspacman --budget-minutes 8
    python -m experiments.atari --resume runs/mspacman --budget-minutes 8

Memory: a frame is 7 kB, so a run with the full replay of 1M frames takes 7.1 GB on the device; four such runs together
28 GB, and all seven cells with one seed 50 GB. `--memory-gb` bounds it, by default at four fifths of the device. A
checkpoint holds the replay and is as large; two are kept on disk while a batch is trained, and none after it.
`--capacity` makes all of this smaller. Figures are drawn where Matplotlib is: copy the folder there and run
`python -m experiments.tables FOLDER --write`.

Source: Lee et al., JaxPruner: A Concise Library for Sparsity Research (2023); Obando-Ceron et al., In value-based deep
reinforcement learning, a pruned network is a good network (2024).
"""

import functools
import sys

from experiments.atari.config import AtariSettings
from experiments.atari.measure import measure, table
from experiments.atari.plan import described, fitted, plan
from experiments.harness.command import main as run
from experiments.registry import STUDIES
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure


def _measured(settings: AtariSettings) -> bool:
    """Times the parts of a step, if that is asked for."""
    if settings.measure:
        config = fitted(settings)
        batches = list(config.batches())
        print(described(config), flush=True)
        print(f"\n{table(config, batches, measure(config, batches[0]))}")
    return bool(settings.measure)


main = functools.partial(run, STUDIES["atari"], AtariSettings, plan, explains=(EnvironmentFailure,), instead=_measured)

if __name__ == "__main__":
    sys.exit(main())
