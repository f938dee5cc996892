"""All studies, a row each: the command, what it does, how its rows are read, and what its numbers may depend on."""

from experiments.atari.layout import layout as atari
from experiments.channels.studies import STUDIES as CHANNELS
from experiments.channels.studies import layout as channels
from experiments.demos.rl_demo.layout import layout as rl_demo
from experiments.fed_emnist.layout import layout as federated
from experiments.harness.study import Study
from experiments.hostile.studies import STUDIES as HOSTILE
from experiments.hostile.studies import layout as hostile
from experiments.minatar.layout import layout as minatar
from experiments.structures.studies import STUDIES as STRUCTURES
from experiments.structures.studies import layout as structures
from experiments.t5.layout import layout as t5
from experiments.t5.studies import STUDIES as T5
from experiments.versus_dopamine.layout import layout as versus_dopamine
from experiments.versus_purejaxql.layout import layout as versus_purejaxql
from experiments.vision.layout import layout as vision
from experiments.vision.studies import STUDIES as VISION

_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "sparse-plugins")
_FEDERATED = ("dm-haiku", "fedjax", "orbax-checkpoint", "scikit-learn", *_PACKAGES)
_FLAX = ("flax", "scikit-learn", *_FEDERATED)

_ROWS = (
    Study(
        "fed_emnist",
        "Trains federated averaging on handwriting, dense and with sparse messages, and compares accuracy and bytes."
        " Makes a new folder with tables, plots and config.json, and in it one for each run with its ledger and"
        " parameters.",
        federated,
        _FEDERATED,
    ),
    Study(
        "minatar",
        "Trains DQN or PQN on MinAtar's games, dense and sparse, and compares returns. Makes a new folder with tables,"
        " plots and config.json. Ctrl-C or SIGTERM stops it after the current stretch of training, --resume goes on.",
        minatar,
        ("dm-haiku", "gymnax", *_PACKAGES),
    ),
    Study(
        "atari",
        "Trains DQN on Atari games, dense and sparse, several cells at once, and compares returns with published ones."
        " Makes a new folder with tables, plots and config.json. Ctrl-C or SIGTERM stops it after the current stretch"
        " of training, --resume goes on. --measure first tells how long it will take.",
        atari,
        ("ale-py", "dm-haiku", *_PACKAGES),
    ),
    Study(
        "vision",
        "Trains image classifiers, dense and sparse, and compares accuracy, spectra and bytes.",
        vision,
        _FLAX,
        VISION,
    ),
    Study("t5", "Trains T5 1.1 by span corruption, dense and sparse, and compares losses and bytes.", t5, _FLAX, T5),
    Study(
        "structures",
        "Unstructured, 2:4, blocks of 4x4 and channels at the same sparsity, in the federated study and in that of"
        " CartPole.",
        structures,
        ("gymnax", *_FEDERATED),
        STRUCTURES,
    ),
    Study(
        "channels",
        "Channels that leave against masks that stay, and against narrow networks from scratch: quality, measured time"
        " and bytes.",
        channels,
        ("gymnax", *_FLAX),
        CHANNELS,
    ),
    Study(
        "hostile",
        "Sparse federated averaging of which one or two clients in ten turn signs or train for other labels.",
        hostile,
        _FEDERATED,
        HOSTILE,
    ),
    Study(
        "versus_dopamine",
        "The same agent by Dopamine and by this package's own loops: what it learns, and what a step costs.",
        versus_dopamine,
        ("dm-haiku", "dopamine-rl", "flax", "gymnasium", "gymnax", "minatar", *_PACKAGES),
    ),
    Study(
        "versus_purejaxql",
        "The same PQN by purejaxql and by this package's own loop: what it learns, and what a step costs.",
        versus_purejaxql,
        ("dm-haiku", "flax", "gymnax", *_PACKAGES),
    ),
    Study(
        "demos.rl_demo",
        "Solves CartPole with Dopamine's DQN, dense and sparse, and lets the agent play some Pong.",
        rl_demo,
        ("ale-py", "dopamine-rl", "flax", "gymnasium", *_PACKAGES),
    ),
)
STUDIES = {study.name: study for study in _ROWS}
LAYOUTS = {study.name: study.layout for study in _ROWS}
