"""A small DQN on CartPole; as a process of its own, one that kills itself at a given moment."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin

from sparse_plugins.rl.dopamine import runners
from sparse_plugins.rl.dopamine.checkpoints import replay_files, run_folder

BINDINGS = [
    "import dopamine.discrete_domains.gym_lib",
    "create_agent.agent_name = 'jax_dqn'",
    "create_runner.schedule = 'continuous_train'",
    "JaxDQNAgent.observation_shape = %gym_lib.CARTPOLE_OBSERVATION_SHAPE",
    "JaxDQNAgent.observation_dtype = %jax_networks.CARTPOLE_OBSERVATION_DTYPE",
    "JaxDQNAgent.stack_size = %gym_lib.CARTPOLE_STACK_SIZE",
    "JaxDQNAgent.network = @networks.ClassicControlDQNNetwork",
    "JaxDQNAgent.min_replay_history = 30",
    "JaxDQNAgent.target_update_period = 16",
    "JaxDQNAgent.seed = 0",
    "ClassicControlDQNNetwork.hidden_units = 16",
    "ReplayBuffer.max_capacity = 100",
    "ReplayBuffer.batch_size = 8",
    "create_updater_from_config.algorithm = 'set'",
    "create_updater_from_config.drop_fraction = 0.3",
    "create_updater_from_config.update_start_step = 2",
    "create_updater_from_config.update_end_step = 1000",
    "create_updater_from_config.update_freq = 3",
    "create_gym_environment.environment_name = 'CartPole'",
    "create_gym_environment.version = 'v1'",
    "Runner.create_environment_fn = @gym_lib.create_gym_environment",
    "TrainRunner.create_environment_fn = @gym_lib.create_gym_environment",
    "Runner.num_iterations = 5",
    "Runner.training_steps = 40",
    "Runner.evaluation_steps = 20",
    "Runner.use_legacy_logger = False",
    "Runner.fine_grained_print_to_console = False",
    "CollectorDispatcher.collectors = ('tensorboard',)",
]


def start(folder: Path, *bindings: str) -> Any:
    """The runner of a folder; new, or going on."""
    gin.clear_config()
    gin.parse_config([*BINDINGS, *bindings])
    return runners.create_sparse_runner(str(folder))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def method(*given: Any) -> Any:
        action(*given)
        return original(*given)

    setattr(owner, name, method)


def in_training(iteration: int) -> None:
    """At the twentieth step of an iteration."""
    steps: list[int] = []

    def arm(_: Any, number: int) -> None:
        if number == iteration:
            steps.append(0)

    def count(*_: Any) -> None:
        if steps:
            steps[0] += 1
            if steps[0] == 20:
                die()

    before(runners.SparseTrainRunner, "_run_one_iteration", arm)
    before(runners.SparseTrainRunner, "_run_one_step", count)


def in_replay(iteration: int) -> None:
    """Half of the file is there."""

    def write_half(path: Path, _: Any) -> None:
        if path.name == "replay.npz" and path.parent.name == str(iteration):
            path.write_bytes(b"half")
            die()

    before(replay_files, "write_values", write_half)


def before_file(iteration: int) -> None:
    """The replay memory is saved, and nothing else."""
    before(run_folder.SealedCheckpointer, "save", lambda _, number, __: die() if number == iteration else None)


MOMENTS = {"in_training": in_training, "in_replay": in_replay, "before_file": before_file}


def main(arguments: Sequence[str]) -> None:
    folder, moment, iteration = arguments
    MOMENTS[moment](int(iteration))
    start(Path(folder)).run_experiment()


if __name__ == "__main__":
    main(sys.argv[1:])
