"""Agent steps per cpu-second on Pong: Dopamine's runner loop against `rl.VectorTrainer`, collecting and training.

    python -m experiments.benchmarks.rl_collect --rounds 5

Both play the real ROM with sticky actions, the Nature network and, in training, an update of batch 32 for every fourth
step. They take turns in one process; a ratio is the median over rounds of ours / Dopamine's.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from experiments.harness.tables import markdown_table
from sparse_plugins import core, rl
from sparse_plugins.rl import haiku
from sparse_plugins.rl.environments import atari

NEVER = 1 << 24


def _dopamine(trains: bool) -> Callable[[int], None]:
    from experiments.common.agents.dopamine_play import make_agent

    # isort: split
    from dopamine.discrete_domains import atari_lib

    bindings = (
        "create_updater_from_config.algorithm = 'no_prune'",
        "ReplayBuffer.max_capacity = 10_000",
        f"JaxDQNAgent.min_replay_history = {64 if trains else NEVER}",
    )
    agent, game = make_agent("pong_dqn", atari_lib.create_atari_environment, 0, bindings)

    def endless() -> Iterator[None]:
        while True:
            action, has_ended = agent.begin_episode(game.reset()), False
            while not has_ended:
                observation, reward, has_ended, _ = game.step(action)
                action = agent.end_episode(reward, True) if has_ended else agent.step(reward, observation)
                yield

    steps = endless()

    def run(count: int) -> None:
        for _ in range(count):
            next(steps)
        jax.block_until_ready(agent.online_params)

    return run


def _ours(trains: bool, num_envs: int, num_halves: int) -> Callable[[int], None]:
    agent = haiku.SparseDQN(
        num_actions=6,
        torso=haiku.nature_torso(),
        optimizer=optax.adam(6.25e-5, eps=1.5e-4),
        updater=core.NoPruning(),
        target_period=2_000,
    )
    config = rl.VectorConfig(
        num_envs=num_envs,
        num_halves=num_halves,
        capacity=10_000,
        updates=num_envs // 4,
        warm_up=64 if trains else NEVER,
        clip_rewards=True,
    )
    trainer = rl.VectorTrainer(
        lambda seed, first, size: atari.AtariVector("Pong", size, seed=seed, first_slot=first, num_threads=1),
        [rl.Group("dense", agent, seeds=(0,))],
        config,
    )

    def run(count: int) -> None:
        trainer.advance(count // num_envs)
        jax.block_until_ready(trainer.states)

    return run


def _pace(run: Callable[[int], None], steps: int) -> float:
    began = time.process_time()
    run(steps)
    return steps / (time.process_time() - began)


def measure(num_envs: int, num_halves: int, rounds: int, steps: dict[str, int]) -> list[tuple[Any, ...]]:
    """A row per phase: what is measured, agent steps per cpu-second of both, ratio.

    Args:
        num_envs: Environments of our side; Dopamine has one.
        num_halves: Groups of them that take turns.
        rounds: Rounds of which medians are taken.
        steps: Agent steps of a round, by phase.
    """
    rows = []
    for phase, count in steps.items():
        sides = [_dopamine(phase == "train"), _ours(phase == "train", num_envs, num_halves)]
        for run in sides:
            run(128)  # past the warm-up, compiled
        paces = [[_pace(run, count) for run in sides] for _ in range(rounds)]
        theirs, ours = (statistics.median(column) for column in zip(*paces, strict=True))
        ratio = statistics.median(pace[1] / pace[0] for pace in paces)
        rows.append((phase, f"{theirs:,.0f}", f"{ours:,.0f}", f"{ratio:.2f}"))
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=8, help="environments of our side, a multiple of 8")
    parser.add_argument(
        "--halves",
        type=int,
        default=1,
        help="parts of the environments that take turns; 2 are faster unless the device is a CPU",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which medians are taken")
    parser.add_argument("--collect", type=int, default=800, help="agent steps of a round without learning")
    parser.add_argument("--train", type=int, default=64, help="agent steps of a round with learning")
    options = parser.parse_args()
    steps = {"collect": options.collect, "train": options.train}
    rows = measure(options.envs, options.halves, options.rounds, steps)
    print(f"{jax.default_backend()}, jax {jax.__version__}, Pong, {options.envs} environments against 1\n")
    print(markdown_table(("agent steps per cpu-second", "Dopamine", "rl.VectorTrainer", "ratio"), rows))


if __name__ == "__main__":
    main()
