"""What a newcomer writes and has to know for common wishes, in the long form and with `core.sparsify`.

Lines are those that carry code. Concepts are the names and keywords of this package in them, and in gin the bindings.
Both forms are run, and have to make the same plan.
"""

import ast
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flwr.serverapp.strategy import FedAvg

from sparse_plugins import core, fed, rl, t5, vision
from sparse_plugins.fed import flower
from sparse_plugins.rl import haiku

KEY = jax.random.key(0)
PARAMS = {"body": {"kernel": jnp.ones((64, 32))}, "head": {"kernel": jnp.ones((32, 16)), "bias": jnp.ones(16)}}
MODULES = {"core": core, "fed": fed, "rl": rl, "haiku": haiku, "flower": flower, "vision": vision}
RIGL = """
updater = core.RigL(
    sparsity_distribution_fn=functools.partial(core.erk, sparsity=0.9),
    scheduler=core.PeriodicSchedule(update_freq=75, update_start_step=0, update_end_step=7_500),
    drop_fraction_fn=core.CosineDrop(0.3, end_step=7_500),
)
"""
MAGNITUDE = """
updater = core.MagnitudePruning(
    sparsity_distribution_fn=functools.partial(core.erk, sparsity=0.8),
    scheduler=core.PolynomialSchedule(update_freq=55, update_start_step=2_000, update_end_step=7_500),
)
"""


class Wish(NamedTuple):
    """Both forms, each of which makes `sparse`, and how many lines and concepts they take."""

    before: str
    after: str
    lines: tuple[int, int]
    concepts: tuple[int, int]


WISHES = {
    "RigL at 90% in an optax loop": Wish(
        RIGL + "sparse = updater.wrap_optax(optax.adam(1e-3))",
        'sparse = core.sparsify(optax.adam(1e-3), "rigl", sparsity=0.9, total_steps=10_000)',
        lines=(5, 1),
        concepts=(13, 3),
    ),
    "magnitude pruning with Flax NNX": Wish(
        MAGNITUDE + "sparse = vision.Optimizer(model, optax.adam(1e-3), updater, wrt=nnx.Param).tx",
        'tx = core.sparsify(optax.adam(1e-3), "magnitude", sparsity=0.8, total_steps=10_000)\n'
        "sparse = nnx.Optimizer(model, tx, wrt=nnx.Param).tx",
        lines=(4, 2),
        concepts=(11, 3),
    ),
    "a sparse DQN with Haiku": Wish(
        RIGL + "sparse = agent(updater=updater).updater",
        'sparse = agent(updater="rigl", sparsity=0.9, total_steps=10_000).updater',
        lines=(5, 1),
        concepts=(13, 3),
    ),
    "FedJAX's federated averaging with a RigL server": Wish(
        RIGL.replace("7_500)", '7_500, step_unit="round")', 1)
        + "server_optimizer = fed.sparse_server_optimizer(optax.adam(0.01), sparse := updater)",
        'sparse = fed.sparse_server_optimizer(optax.adam(0.01), "rigl", sparsity=0.9, rounds=10_000)',
        lines=(5, 1),
        concepts=(14, 3),
    ),
    "a Flower server with RigL": Wish(
        RIGL.replace("7_500)", '7_500, step_unit="round")', 1)
        + "sparse = flower.SparseStrategy(FedAvg(), updater).server.updater",
        'sparse = flower.SparseStrategy(FedAvg(), "rigl", sparsity=0.9, rounds=10_000).server.updater',
        lines=(5, 1),
        concepts=(14, 3),
    ),
    "2:4 in one layer and ERK elsewhere": Wish(
        MAGNITUDE.replace("0.8)", '0.8, rules=[("body/.*", 0.5)])').replace(
            "7_500),\n",
            '7_500),\n    sparsity_type=core.ByPath([("body/.*", core.NByM(2, 4))], core.Unstructured()),\n',
        )
        + "sparse = updater.wrap_optax(optax.adam(1e-3))",
        'rules = [("body/.*", "2:4")]\n'
        'sparse = core.sparsify(optax.adam(1e-3), "magnitude", sparsity=0.8, total_steps=10_000, rules=rules)',
        lines=(5, 2),
        concepts=(15, 4),
    ),
}


def lines(code: str) -> int:
    return sum(bool(line.strip(" )")) for line in code.splitlines())


def concepts(code: str) -> set[str]:
    """Names of this package in some code, and the keywords that it is called with."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {*MODULES, "updater"}:
            found.add(node.attr)
        if isinstance(node, ast.Call) and not ast.unparse(node.func).startswith(("optax", "nnx")):
            found |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return found


def made(code: str) -> Any:
    """What a script calls `sparse`."""
    model = nnx.Sequential(nnx.Linear(64, 32, rngs=nnx.Rngs(0)))
    torso = haiku.mlp_torso((16,))
    agent = functools.partial(haiku.SparseDQN, num_actions=2, torso=torso, optimizer=optax.adam(1e-3))
    given = {"functools": functools, "optax": optax, "nnx": nnx, "model": model, "agent": agent, "FedAvg": FedAvg}
    names: dict[str, Any] = {**MODULES, **given}
    exec(code, names)
    return names["sparse"]


@pytest.mark.parametrize("name", WISHES)
def test_the_one_call_makes_the_same_plan_with_less(name: str) -> None:
    wish = WISHES[name]
    before, after = (str(core.plan(made(code), PARAMS)) for code in (wish.before, wish.after))
    assert after == before
    assert "dense" in after  # the bias, so that layers are listed
    assert (lines(wish.before), lines(wish.after)) == wish.lines
    assert (len(concepts(wish.before)), len(concepts(wish.after))) == wish.concepts
    assert wish.lines[1] <= 2
    assert wish.concepts[1] <= wish.concepts[0] / 2


GIN_BEFORE = """
create_updater_from_config.algorithm = 'rigl'
create_updater_from_config.dist_type = 'erk'
create_updater_from_config.sparsity = 0.9
create_updater_from_config.update_start_step = 0
create_updater_from_config.update_end_step = 7_500
create_updater_from_config.update_freq = 75
"""
GIN_AFTER = """
create_updater_from_config.algorithm = 'rigl'
create_updater_from_config.sparsity = 0.9
create_updater_from_config.total_steps = 10_000
"""


@pytest.mark.xdist_group("dopamine")
def test_three_bindings_make_a_sparse_dopamine_agent() -> None:
    import gin

    from sparse_plugins.rl import dopamine as sparse

    plans = []
    for bindings in (GIN_BEFORE, GIN_AFTER):
        gin.clear_config()
        gin.parse_config(bindings)
        plans.append(str(core.plan(sparse.create_updater_from_config(), PARAMS)))
    gin.clear_config()
    assert plans[0] == plans[1]
    assert "RigL" in plans[1]
    assert (lines(GIN_BEFORE), lines(GIN_AFTER)) == (6, 3)


WORDS = {"sparsity": 0.9, "total_steps": 10_000, "rules": [("head/.*", None)]}
NETWORK = (lambda key: PARAMS, None)


@flax.struct.dataclass
class ScenicState:
    params: Any
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    opt_state: Any = ()
    global_step: int = 0


class ZooAgent:
    def __init__(self, optimizer: optax.GradientTransformation, rng_key: Any) -> None:
        self.optimizer = optimizer
        self._online_params = self._target_params = PARAMS
        self._opt_state = optimizer.init(PARAMS)

    def get_state(self) -> None: ...

    def set_state(self, state: Any) -> None: ...


class T5XDefinition:
    init_state = apply_gradient = update_hyper_params = create = None


FRONT_ENDS: dict[str, Callable[..., Any]] = {
    "a learner": lambda updater, **words: rl.SparseLearner(
        network=NETWORK, loss_fn=len, act_fn=len, optimizer=optax.sgd(0.1), updater=updater, **words
    ),
    "a Haiku agent": lambda updater, **words: haiku.SparseDQN(
        num_actions=2, torso=haiku.mlp_torso((16,)), optimizer=optax.sgd(0.1), updater=updater, **words
    ),
    "an agent of DQN Zoo": lambda updater, **words: (
        haiku.sparsify_dqn_zoo(ZooAgent)(
            optimizer=optax.sgd(0.1), rng_key=jax.random.key(0), updater=updater, **words
        ).optimizer
    ),
    "a Flax train state": lambda updater, **words: (
        vision.TrainState.create(apply_fn=len, params=PARAMS, tx=optax.sgd(0.1), updater=updater, **words).tx
    ),
    "a Scenic train state": lambda updater, **words: (
        vision.scenic.sparsify_train_state(ScenicState(params=PARAMS, tx=optax.sgd(0.1)), updater, **words).tx
    ),
    "a T5X optimizer": lambda updater, **words: t5.SparseOptimizer(T5XDefinition(), updater, **words),
    "a FedJAX server": lambda updater, **words: fed.sparse_server_optimizer(optax.sgd(0.1), updater, **words),
    "a Flower strategy": lambda updater, **words: flower.SparseStrategy(FedAvg(), updater, **words).server,
}
SERVERS = ("a FedJAX server", "a Flower strategy")  # their steps are rounds


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_every_front_end_takes_the_same_words_and_says_the_same_of_wrong_ones(name: str) -> None:
    build, is_server = FRONT_ENDS[name], name in SERVERS
    length, step_unit = ("rounds", "round") if is_server else ("total_steps", "optimizer step")
    given = {length if word == "total_steps" else word: value for word, value in WORDS.items()}
    found = build("rigl", **given)
    updater = getattr(found, "updater", None) or core.updater_of(found)
    wanted = core.build_updater(core.RigL, step_unit=step_unit, **WORDS)
    # Agents draw their masks from keys of their own.
    assert core.describe_plan(updater.seeded(KEY), PARAMS) == core.describe_plan(wanted.seeded(KEY), PARAMS)
    for updater, words, error, message in (
        ("rigl", {"sparsity": 0.9}, ValueError, f"give {length}="),
        ("rigl", given | {"sparsty": 0.9}, ValueError, "'sparsty' is unknown.*Did you mean 'sparsity'"),
        ("RigL", given, ValueError, "Did you mean 'rigl'"),
        (core.NoPruning(), given, ValueError, "says all of itself: give sparsity, rules to the updater"),
        (None, {}, TypeError, "updater is a NoneType; give an updater"),
    ):
        with pytest.raises(error, match=message):
            build(updater, **words)
