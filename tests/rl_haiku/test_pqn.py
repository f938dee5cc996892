import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_plugins import core, rl
from sparse_plugins.rl import haiku, q_learning
from sparse_plugins.rl.replay.memory import ReplayState, Row
from tests.rl_haiku.tiny import LIMIT, Corridor
from tests.rl_haiku.toy_learner import assert_same_bits

STEPS, ENVIRONMENTS = 6, 3
CONFIG = rl.PQNConfig(
    num_envs=8, vector_steps=6, epochs=2, minibatches=4, discount=0.9, trace=0.65, epsilon_decay=1_500
)
KEYS = jax.random.split(jax.random.key(0), 2)
ITERATIONS = 30


def slow_returns(reward: np.ndarray, discount: np.ndarray, after: np.ndarray, trace: float) -> np.ndarray:
    """By the definition: a mean of the returns over n steps, bootstrapped or cut off at the end of the piece."""
    steps, environments = reward.shape
    out = np.zeros(reward.shape)
    for environment in range(environments):
        for start in range(steps):
            rewards, factor, left = 0.0, 1.0, 1.0
            for at in range(start, steps):
                rewards += factor * reward[at, environment]
                factor *= discount[at, environment]
                weight = left if at == steps - 1 else left * (1 - trace)
                out[start, environment] += weight * (rewards + factor * after[at, environment])
                left -= weight
    return out


@pytest.mark.parametrize("trace", [0.0, 0.65, 1.0])
def test_returns_are_means_of_those_over_n_steps(trace: float) -> None:
    random = np.random.default_rng(0)
    reward, after = random.normal(size=(2, 7, 4))
    discount = np.where(random.random((7, 4)) < 0.25, 0.0, 0.9)
    got = jax.jit(q_learning.lambda_returns)(*(x.astype(np.float32) for x in (reward, discount, after)), trace)
    np.testing.assert_allclose(got, slow_returns(reward, discount, after, trace), rtol=1e-5, atol=1e-5)


def test_what_a_time_limit_cuts_off_is_worth_what_its_last_observation_is() -> None:
    random = np.random.default_rng(0)
    frames, observation = random.normal(size=(STEPS, ENVIRONMENTS, 2)), random.normal(size=(ENVIRONMENTS, 2))
    terminated = np.zeros((STEPS, ENVIRONMENTS), bool)
    truncated = terminated.copy()
    terminated[2, 0] = truncated[3, 1] = truncated[5, 2] = True
    reward = random.normal(size=terminated.shape).astype(np.float32)
    action = random.integers(0, 2, terminated.shape)
    rows = Row(frames, None, action, reward, terminated, ~truncated)
    learner = types.SimpleNamespace(values=lambda weight, seen: weight * seen)
    got = rl.PQNConfig(num_envs=ENVIRONMENTS, vector_steps=STEPS, minibatches=2, discount=0.9).targets(
        learner, types.SimpleNamespace(params=2.0), ReplayState(jax.tree.map(jnp.asarray, rows), 0, None, None),
        jnp.asarray(observation),
    )  # fmt: skip
    best = 2.0 * np.concatenate([frames, observation[None]]).max(axis=2)
    expected = np.zeros(terminated.shape)
    for environment in range(ENVIRONMENTS):
        following = best[-1, environment]
        for step in reversed(range(STEPS)):
            bootstrapped = 0.35 * best[step + 1, environment] + 0.65 * following
            following = reward[step, environment] + 0.9 * bootstrapped * (not terminated[step, environment])
            if truncated[step, environment]:
                following = best[step, environment]
            expected[step, environment] = following
    np.testing.assert_allclose(got.target.reshape(expected.shape), expected, rtol=1e-5)
    np.testing.assert_array_equal(got.weight.reshape(expected.shape), ~truncated)
    np.testing.assert_array_equal(got.action, action.reshape(-1))
    np.testing.assert_array_equal(got.observation, frames.astype(np.float32).reshape(-1, 2))


def test_an_epoch_learns_from_every_row_once() -> None:
    class Counting:
        def values(self, params: Any, seen: jax.Array) -> jax.Array:
            return jnp.zeros((len(seen), 2))

        def learn(self, state: Any, batch: Any) -> tuple[Any, dict]:
            assert batch.action.shape == (12,)
            seen = state.params.at[batch.action].add(1)
            return state._replace(params=seen, key=state.key + 1), {"loss": jnp.float32(state.key)}

    count = 8 * 6
    cells = jnp.arange(count).reshape(6, 8)
    rows = Row(jnp.zeros((6, 8, 2)), None, cells, jnp.zeros((6, 8)), cells < 0, cells >= 0)
    state = rl.LearnerState(jnp.zeros(count, jnp.int32), None, None, jnp.int32(0))
    memory = ReplayState(rows, jnp.int32(6), None, None)
    after, same, loss = CONFIG.learn(Counting(), state, None, memory, jnp.zeros((8, 2)), jax.random.key(0))
    assert after.params.tolist() == [2] * count
    assert (int(after.key), float(loss)) == (CONFIG.updates, 3.5)
    assert same is memory


def pqn(algorithm: str, **settings: Any) -> haiku.SparsePQN:
    return haiku.SparsePQN(
        num_actions=2,
        torso=haiku.mlp_torso((16,), layer_norm=True),
        optimizer=optax.chain(optax.clip_by_global_norm(10.0), optax.radam(0.01)),
        updater=core.build_updater(algorithm, **settings),
    )


@pytest.fixture(scope="module")
def trainer() -> rl.FusedTrainer:
    return rl.FusedTrainer(Corridor(), pqn("rigl", sparsity=0.5, total_steps=ITERATIONS * CONFIG.updates), CONFIG)


def test_a_walk_is_learnt_inside_masks_that_change(trainer: rl.FusedTrainer) -> None:
    state = trainer.init(KEYS)
    first = jax.tree.map(np.asarray, state.learner.sparse_state.masks)
    state, _ = trainer.run(state, ITERATIONS)
    returns = trainer.evaluate(state, 20, jax.random.key(1), longest=LIMIT + 1)
    assert np.isin(returns, [2 - 0.125 * 3, 2 - 0.125 * 2]).all(), "the goal is three or four steps away"
    assert trainer.environment_steps(state) == CONFIG.environment_steps(ITERATIONS) == ITERATIONS * 48
    assert state.learner.target_params is None
    for seed in range(2):
        params, optimizer_state = jax.tree.map(lambda leaf: leaf[seed], state.learner[::2])  # noqa: B023
        core.check_sparse(params, optimizer_state)
        assert sum(np.count_nonzero(params[name]["w"]) for name in ("hidden_1", "values")) <= (5 * 16 + 16 * 2) / 2
    after = jax.tree.leaves(state.learner.sparse_state.masks)
    assert any((np.asarray(mask) != before).any() for mask, before in zip(after, jax.tree.leaves(first), strict=True))


@pytest.mark.filterwarnings("ignore:RigL still changes masks:UserWarning")  # a part of a longer run
def test_a_training_in_two_parts_is_that_in_one(trainer: rl.FusedTrainer, tmp_path: Any) -> None:
    whole, metrics = trainer.run(trainer.init(KEYS), 6)
    options = {"chunk_iterations": 3, "checkpoint_chunks": 1}
    rl.train_fused(trainer, KEYS, CONFIG.environment_steps(3), tmp_path, **options)
    run = rl.train_fused(trainer, KEYS, CONFIG.environment_steps(6), tmp_path, **options)
    data = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, tree
    )
    assert_same_bits(data(run.state), data(whole))
    assert sum(np.array([chunk.episodes for chunk in run.curve])).tolist() == metrics.episodes.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minibatches": 5}, "minibatches is 5, and 32 steps of 128 environments are 4096 rows; give a number that"),
        ({"vector_steps": 1}, "vector_steps is 1; the smallest allowed value is 2"),
        ({"epochs": 0}, "epochs is 0; the smallest allowed value is 1"),
        ({"trace": 1.5}, r"trace is 1\.5"),
        ({"epsilon_end": -1.0}, r"epsilon_end is -1\.0"),
    ],
)
def test_configurations_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rl.PQNConfig(**fields)


def test_a_learner_without_a_target_network_says_what_a_period_may_be() -> None:
    with pytest.raises(ValueError, match="target_period is 0; give optimizer steps between copies, 1 or more, or None"):
        haiku.SparsePQN(
            num_actions=2, torso=haiku.mlp_torso((4,)), optimizer=optax.sgd(0.1), updater=core.NoPruning(),
            target_period=0,
        )  # fmt: skip
