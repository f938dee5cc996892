"""Actors in processes of their own play CartPole, and a learner trains DQN and keeps them at its weights.

    python -m experiments.demos.actor_learner
    python -m experiments.demos.actor_learner --actors 4 --sparsities 0.9 --dtypes bfloat16

Actors never wait for weights: they ask, play on, and take what came. They wait until the learner has taken their last
batch of transitions before they send the next. A batch says of which version the weights were that played; what the
learner is ahead of that is its staleness, in optimizer steps.
"""

import argparse
import functools
import multiprocessing
import struct
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness.tables import markdown_table
from sparse_plugins import core, rl
from sparse_plugins.rl import haiku
from sparse_plugins.rl.replay import Batch

ENVIRONMENTS, STEPS = 8, 16  # of one batch that an actor sends
MEMORY, BATCH, WARM_UP = 20_000, 64, 1_000
UPDATES = 8  # optimizer steps for each batch that arrives, and between two versions
DISCOUNT = 0.99
_FRONT = struct.Struct("<QI")
_TAKEN = b"\1"
_ROW = 12  # observation, action, reward, discount, next observation, weight


class Outcome(NamedTuple):
    """Of one training.

    Attributes:
        traffic: What the learner sent.
        dense_bytes: What it would have sent as full copies: one for each payload.
        versions: How many it published.
        staleness: Optimizer steps that each batch was behind.
        returns: Returns of finished episodes, in the order of their arrival.
    """

    traffic: rl.Traffic
    dense_bytes: int
    versions: int
    staleness: list[int]
    returns: list[float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=2, help="number of acting processes")
    parser.add_argument(
        "--batches",
        type=int,
        default=600,
        help=f"batches to learn from, of {ENVIRONMENTS * STEPS} environment steps each",
    )
    parser.add_argument("--sparsities", nargs="+", type=float, default=(0.0, 0.9), help="target sparsities; 0 is dense")
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"), help="dtypes in which weights travel")
    options = parser.parse_args(arguments)
    rows = []
    for sparsity in options.sparsities:
        for dtype in options.dtypes:
            outcome = train(sparsity, dtype, options.actors, options.batches)
            rows.append((f"{sparsity:.0%}", dtype, *described(outcome)))
    header = (
        *("sparsity", "sent as", "return", "versions", "deltas sent", "bytes each", "/ dense", "snapshots"),
        *("all bytes / full copies", "staleness, mean", "most"),
    )
    print(markdown_table(header, rows))


def described(outcome: Outcome) -> tuple[str, ...]:
    """The cells of a row."""
    traffic = outcome.traffic
    sent = traffic.delta_bytes + traffic.snapshot_bytes
    dense_message = outcome.dense_bytes / max(traffic.deltas + traffic.snapshots, 1)
    each = traffic.delta_bytes / max(traffic.deltas, 1)
    return (
        f"{np.mean(outcome.returns[-50:] or [np.nan]):.0f}",
        str(outcome.versions),
        str(traffic.deltas),
        f"{each:,.0f}",
        f"{each / dense_message:.1%}",
        str(traffic.snapshots),
        f"{sent / outcome.dense_bytes:.1%}",
        f"{np.mean(outcome.staleness):.1f}",
        str(max(outcome.staleness)),
    )


def agent(sparsity: float) -> tuple[Any, haiku.SparseDQN]:
    """The game and the learner."""
    game = rl.jax_environments.gymnax_environment("CartPole-v1")
    updater: core.BaseUpdater = core.NoPruning()
    if sparsity:
        updater = core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.erk, sparsity=sparsity))
    learner = haiku.SparseDQN(
        num_actions=game.num_actions,
        torso=haiku.mlp_torso((128, 128)),
        optimizer=optax.adam(5e-4),
        updater=updater,
        target_period=200,
        double=True,
    )
    return game, learner


def train(sparsity: float, dtype: str, actors: int, batches: int) -> Outcome:
    """Starts the actors, learns from so many of their batches, and ends them."""
    _, learner = agent(sparsity)
    state = learner.init(jax.random.key(0), jnp.zeros((1, 4)))
    learn, sent_as = jax.jit(learner.learn), jax.jit(lambda params: jax.tree.map(lambda p: p.astype(dtype), params))
    sender = rl.WeightSender()
    sender.publish(sent_as(state.params))
    spawn = multiprocessing.get_context("spawn")
    pairs = [(spawn.Pipe(), spawn.Pipe()) for _ in range(actors)]
    processes = [
        spawn.Process(target=act, args=(weights[1], data[1], sparsity, dtype, number), daemon=True)
        for number, (weights, data) in enumerate(pairs)
    ]
    for process in processes:
        process.start()
    for weights, data in pairs:
        weights[1].close()
        data[1].close()
    asks, gives = [weights[0] for weights, _ in pairs], [data[0] for _, data in pairs]
    memory, filled = np.zeros((MEMORY, _ROW), np.float32), 0
    rng = np.random.default_rng(0)
    staleness: list[int] = []
    returns: list[float] = []
    while len(staleness) < batches:
        for ready in connection.wait([*asks, *gives]):
            if ready in asks:
                sender.answer(ready)
                continue
            version, rows, finished = unpacked(ready.recv_bytes())  # type: ignore[union-attr]
            ready.send_bytes(_TAKEN)  # type: ignore[union-attr]
            memory[np.arange(filled, filled + len(rows)) % MEMORY] = rows
            filled += len(rows)
            returns += finished.tolist()
            staleness.append(int(state.steps) - version)
            if filled < WARM_UP:
                continue
            for _ in range(UPDATES):
                state, _ = learn(state, batch_of(memory[rng.integers(min(filled, MEMORY), size=BATCH)]))
            sender.publish(sent_as(state.params), version=int(state.steps))
    for end in (*asks, *gives):
        end.close()
    for process in processes:
        process.join(30)
    payloads = sender.traffic.deltas + sender.traffic.snapshots
    dense = sum(leaf.nbytes for leaf in jax.tree.leaves(sent_as(state.params)))
    return Outcome(sender.traffic, dense * payloads, int(state.steps) // UPDATES + 1, staleness, returns)


def act(weights: connection.Connection, data: connection.Connection, sparsity: float, dtype: str, number: int) -> None:
    """Plays until the learner hangs up."""
    game, learner = agent(sparsity)
    shapes = jax.eval_shape(learner.init, jax.random.key(0), jnp.zeros((1, 4))).params
    receiver = rl.WeightReceiver(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes), weights)
    play = jax.jit(functools.partial(_play, game, learner))
    key = jax.random.fold_in(jax.random.key(1), number)
    played = jax.vmap(game.reset)(jax.random.split(key, ENVIRONMENTS))
    sums = np.zeros(ENVIRONMENTS)
    try:
        receiver.update()
        for count in range(1 << 30):
            epsilon = max(0.05, 1.0 - count / 100)
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), receiver.weights)
            played, (rows, over) = play(params, jax.random.fold_in(key, count), played, epsilon)
            finished = []
            for rewards, is_over in zip(np.asarray(rows)[..., 5], np.asarray(over), strict=True):
                sums += rewards
                finished += sums[is_over].tolist()
                sums[is_over] = 0
            if count:
                data.recv_bytes(len(_TAKEN))
            data.send_bytes(packed(receiver.version or 0, np.asarray(rows).reshape(-1, _ROW), finished))
            receiver.update(timeout=0)
    except (EOFError, OSError):
        return


def _play(game: Any, learner: haiku.SparseDQN, params: Any, key: jax.Array, played: Any, epsilon: Any) -> Any:
    """Some steps of all environments: rows [STEPS, ENVIRONMENTS, 12], and where an episode was over."""

    def step(carried: Any, key: jax.Array) -> Any:
        state, observation = carried
        action_key, game_key = jax.random.split(key)
        action = learner.act_fn(params, action_key, observation, epsilon)
        state, after = jax.vmap(game.step)(jax.random.split(game_key, ENVIRONMENTS), state, action)
        columns = (action, after.reward, DISCOUNT * (1.0 - after.terminated))
        weight = 1.0 - (after.truncated & ~after.terminated)  # its last observation is not shown
        rows = jnp.concatenate(
            [observation, *(c[:, None] for c in columns), after.observation, weight[:, None]], axis=1
        )
        return (state, after.observation), (rows, after.terminated | after.truncated)

    return jax.lax.scan(step, played, jax.random.split(key, STEPS))


def batch_of(rows: np.ndarray) -> Batch:
    """What the learner reads."""
    observation, action, reward, discount, following, weight = np.split(rows, [4, 5, 6, 7, 11], axis=1)
    flat = (action[:, 0].astype(np.int32), reward[:, 0], discount[:, 0])
    return Batch(observation, *flat, following, weight[:, 0], np.arange(len(rows), dtype=np.int32))


def packed(version: int, rows: np.ndarray, finished: Sequence[float]) -> bytes:
    """A batch as bytes."""
    return _FRONT.pack(version, len(rows)) + rows.astype("<f4").tobytes() + np.array(finished, "<f4").tobytes()


def unpacked(message: bytes) -> tuple[int, np.ndarray, np.ndarray]:
    """Version, rows and returns of finished episodes."""
    version, count = _FRONT.unpack_from(message)
    numbers = np.frombuffer(message, "<f4", offset=_FRONT.size)
    return version, numbers[: count * _ROW].reshape(count, _ROW), numbers[count * _ROW :]


if __name__ == "__main__":
    main()
