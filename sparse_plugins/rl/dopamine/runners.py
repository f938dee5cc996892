"""Dopamine's runners, with seeds for environments, exact resume, and sparsity among the metrics.

A run that was killed at any moment and started again with the same command ends as the one that was not, bit-exactly:
parameters, optimizer state and masks, replay memory, random numbers, `metrics.csv`. Where that can't be, it stops.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import numpy as np
import tqdm.auto as tqdm
from dopamine.discrete_domains import run_experiment
from dopamine.labs.atari_100k import atari_100k_rainbow_agent, atari_100k_runner
from dopamine.metrics import statistics_instance

from sparse_plugins.core.run_length import concerns_of_length, never_changes
from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.core.storage.values import fields, flag, listed, refuse, stored_array, whole
from sparse_plugins.rl.dopamine.agents import chosen_agent, create_sparse_agent
from sparse_plugins.rl.dopamine.bindings import bound
from sparse_plugins.rl.dopamine.checkpoints.bundles import (
    action,
    bundle_like,
    bundle_values,
    observed,
    stored_channels,
)
from sparse_plugins.rl.dopamine.checkpoints.logs import log_values, read_logs
from sparse_plugins.rl.dopamine.checkpoints.random_states import random_state, set_random_state
from sparse_plugins.rl.dopamine.checkpoints.run_folder import (
    CheckpointError,
    SealedCheckpointer,
    check_settings,
    hold_folder,
)
from sparse_plugins.rl.dopamine.checkpoints.snapshots import restore_environment, seed_environment, take_snapshot
from sparse_plugins.rl.dopamine.metrics import IterationMetrics, MetricsFile
from sparse_plugins.rl.dopamine.scalars import ScalarCollector as ScalarCollector  # which takes the place of Dopamine's
from sparse_plugins.rl.dopamine.sparse_agent import SparseAgent
from sparse_plugins.rl.stopping import stop_requests

__all__ = [
    "ExactRun",
    "SparseDataEfficientRunner",
    "SparseRunner",
    "SparseTrainRunner",
    "create_sparse_runner",
    "dense_agent_class",
]

_PARTS = ("agent", "logs", "run")
_RUN = ("steps", "episode", "environment")
_PARALLEL = ("environment_seeds", "num_steps", "train_environments", "train_state", "agent_train_state")
_MOST_STEPS = 1 << 53


class ExactRun:
    """Mixin in front of a Dopamine runner; all else about the runner stays, its gin bindings included.

    Args:
        base_dir: Local folder of the run: new, or that of the same run, which then goes on.
        create_agent_fn: Called as Dopamine's runners call it; makes a sparse agent.
        seed: Seed of the environments; None for the agent's.
        **options: For Dopamine's runner.

    Raises:
        SettingsMismatchError: If the folder is that of a run with other settings.
        CheckpointError: If there are checkpoints that can't be used, or another process is at work in the folder.
        ValueError: If masks are to change, and their schedule starts after the last iteration.
    """

    _checkpointer: SealedCheckpointer
    # Dopamine's runner has these.
    _agent: Any
    _environment: Any
    _checkpoint_dir: str
    _num_iterations: int
    _training_steps: int
    _max_steps_per_episode: int | None
    _collector_dispatcher: Any
    _use_legacy_logger: bool
    _logger: Any
    _log_experiment: Any
    _run_one_iteration: Any
    action: Any
    episode_ended: bool
    _resumes_late = False  # for runners that have no environments yet when their base class is ready

    def __init__(
        self,
        base_dir: str,
        create_agent_fn: Callable[..., SparseAgent] = create_sparse_agent,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        self._given_seed, self._steps = seed, 0
        super().__init__(base_dir, create_agent_fn, **options)  # type: ignore[call-arg]
        if self._resumes_late:
            self._resume()
        self._metrics = IterationMetrics(self._agent)
        self._file = MetricsFile(Path(base_dir) / "metrics.csv", self._start_iteration)

    def describe_plan(self) -> str:
        """What the run is going to do: the agent's plan, the iterations, and where it goes on."""
        iterations = f"{self._num_iterations} iterations of {self._training_steps:,} environment steps"
        started = f", from iteration {self._start_iteration} on" if self._start_iteration else ""
        concerns = concerns_of_length(self._agent.updater, self._optimizer_steps)
        return "\n".join([self._agent.describe_plan(), f"{iterations}{started}", *map("WARNING: {}".format, concerns)])

    @property
    def _optimizer_steps(self) -> int:
        """Of the whole run, if no episode is longer than its iteration."""
        return self._agent.clock.optimizer_step(self._num_iterations * self._training_steps, "environment step")

    def run_experiment(self) -> int:
        """Runs the iterations that are left.

        On Ctrl-C or SIGTERM the current iteration is finished and saved; a new runner of the folder goes on after it.

        Returns:
            0 if all iterations are done; 130 or 143, as a shell has it, if Ctrl-C or SIGTERM came first.

        Raises:
            KeyboardInterrupt: At Ctrl-C again, which drops the iteration; what was saved before stays.
        """
        print(self.describe_plan(), flush=True)
        left = range(self._start_iteration, self._num_iterations)
        answer = "Stopping: the iteration under way is finished and saved first; Ctrl-C again drops it."
        with (
            stop_requests(answer) as request,
            tqdm.tqdm(left, initial=left.start, total=left.stop, unit="iteration") as bar,
        ):
            for iteration in bar:
                statistics = self._run_one_iteration(iteration)
                row = self._report(iteration, statistics)
                bar.set_postfix({"return": row["train_return"], "sparsity": row["sparsity"]})
                if self._use_legacy_logger:
                    self._log_experiment(iteration, statistics)
                self._checkpoint_experiment(iteration, bool(request))
                self._collector_dispatcher.flush()
                if request and iteration + 1 < left.stop:
                    bar.update()
                    break
            else:
                request.signal = None  # it came too late to stop anything
        self._collector_dispatcher.close()
        return request.exit_status

    @property
    def saved_iterations(self) -> int:
        """How many iterations the newest checkpoint of the folder has; a run goes on after them."""
        return self._checkpointer.newest() + 1

    def _report(self, iteration: int, statistics: dict[str, list[Any]]) -> dict[str, Any]:
        self._steps = self._steps_made(statistics)
        row: dict[str, Any] = {}
        for phase in ("train", "eval"):
            if f"{phase}_average_return" in statistics:
                episodes = len(statistics.get(f"{phase}_episode_returns", []))
                # Without an episode, Dopamine's average is 0.
                row[f"{phase}_return"] = float(statistics[f"{phase}_average_return"][-1]) if episodes else None
                row[f"{phase}_episodes"] = episodes
        row |= self._metrics.measure(iteration)
        self._collector_dispatcher.write(
            [
                statistics_instance.StatisticsInstance(f"Sparse/{name}", value, self._steps)
                for name, value in row.items()
                if value is not None
            ]
        )
        self._file.append({"iteration": iteration, "steps": self._steps, **row})
        return row

    def _steps_made(self, statistics: dict[str, list[Any]]) -> int:
        """Environment steps of training since the run began."""
        return self._steps + sum(statistics["train_episode_lengths"])

    def _initialize_checkpointer_and_maybe_resume(self, checkpoint_file_prefix: str) -> None:
        """Dopamine's base class calls this before it has made anything in the folder."""
        self._start_iteration = 0
        folder = Path(self._checkpoint_dir)
        if not (folder.parent / "settings.gin").exists() and any(folder.glob("*")):
            raise CheckpointError(
                f"{folder} holds checkpoints, and {folder.parent} no settings.gin: they are not those of a sparse run, "
                "which can't go on from them. Choose another --base_dir; nothing has been changed."
            )
        if idle := never_changes(self._agent.updater, self._optimizer_steps):
            raise ValueError(f"{idle}. Start its schedule earlier, or give Runner.num_iterations more iterations.")
        hold_folder(folder.parent)
        self._seed = self._agent._seed if self._given_seed is None else self._given_seed
        seeds = f"agent {self._agent._seed}, environments {self._seed}"
        check_settings(folder.parent, gin.config_str(max_line_length=10_000), self._agent.describe_plan(), seeds)
        self._checkpointer = SealedCheckpointer(str(folder), checkpoint_file_prefix)
        seed_environment(self._environment, self._seed)
        if not self._resumes_late:
            self._resume()

    def _resume(self) -> None:
        found = self._checkpointer.restore_newest(self._restore)
        self._start_iteration = 0 if found is None else found + 1

    def _restore(self, iteration: int, stored: Any) -> None:
        """Puts a checkpoint in place, field by field; a file can't set anything that is not named here."""
        agent, logs, run = fields(stored, _PARTS, "the checkpoint")
        now = self._agent.bundle_now(self._checkpoint_dir, stored_channels(agent, self._agent))
        bundle = bundle_like(agent, now, self._agent)
        if not self._agent.unbundle(self._checkpoint_dir, iteration, bundle):
            raise DamagedFileError("the agent can't go on from it")
        if self._use_legacy_logger and logs is not None:
            self._logger.data = read_logs(logs)
        self._set_run_state(run)

    def _checkpoint_experiment(self, iteration: int, is_last: bool = False) -> None:
        # Dopamine saves the replay at every iteration, and with it drops those of the checkpoints that are rarer.
        if not is_last and not self._checkpointer.is_due(iteration):
            return
        bundle = self._agent.bundle_and_checkpoint(self._checkpoint_dir, iteration)
        logs = log_values(self._logger.data) if self._use_legacy_logger else None
        parts = (bundle_values(bundle), logs, self._run_state())
        self._checkpointer.save(iteration, dict(zip(_PARTS, parts, strict=True)))

    def _run_state(self) -> dict[str, Any]:
        """What this object remembers from one iteration to the next."""
        in_episode = self._max_steps_per_episode is None and not vars(self).get("episode_ended", True)
        has_begun = "episode_ended" in vars(self)
        episode = {"action": self.action, "episode_ended": self.episode_ended} if has_begun else None
        environment = take_snapshot(self._environment, in_episode=in_episode)
        return {"steps": self._steps, "episode": episode, "environment": environment}

    def _set_run_state(self, stored: Any) -> None:
        steps, episode, environment = fields(stored, _RUN, "the run")
        self._steps = whole(steps, 0, _MOST_STEPS, "the run's steps")
        if episode is not None:
            acted, ended = fields(episode, ("action", "episode_ended"), "the episode")
            self.action, self.episode_ended = action(acted, "the episode's action"), flag(ended, "the episode's end")
        restore_environment(self._environment, environment)


@gin.configurable(module="sparse_plugins.rl")
class SparseRunner(ExactRun, run_experiment.Runner):
    """Trains and evaluates in turn; see `ExactRun`, and Dopamine's `Runner` for its gin bindings."""


@gin.configurable(module="sparse_plugins.rl")
class SparseTrainRunner(ExactRun, run_experiment.TrainRunner):
    """Only trains; see `ExactRun`, and Dopamine's `TrainRunner` for its gin bindings."""


@gin.configurable(module="sparse_plugins.rl")
class SparseDataEfficientRunner(ExactRun, atari_100k_runner.DataEfficientAtariRunner):
    """For agents of the Atari-100k benchmark, which act in several environments at once.

    See `ExactRun`, and Dopamine's `DataEfficientAtariRunner` for its gin bindings.
    """

    create_environment_fn: Any
    train_envs: list[Any]
    train_state: Any
    num_steps: int
    _resumes_late = True

    def _resume(self) -> None:
        self._environment_seeds = np.random.default_rng(self._seed)
        for environment in self.train_envs:
            self._seeded(environment)
        create = self.create_environment_fn
        self.create_environment_fn = lambda: self._seeded(create())
        super()._resume()

    def _run_train_phase(self, statistics: Any) -> Any:
        # The replay's accumulator still refers to these buffers, and Dopamine would write the next frames into them.
        self.train_state = copy.deepcopy(self.train_state)
        if self.train_state is not None:
            # Returns and lengths of the episodes since the run began, which would be counted again.
            self.train_state = (*self.train_state[:-2], [], [])
        return super()._run_train_phase(statistics)

    def _steps_made(self, statistics: dict[str, list[Any]]) -> int:
        unfinished = sum(environment.cum_length for environment in self.train_envs)
        return self.num_steps + unfinished

    def _seeded(self, environment: Any) -> Any:
        seed_environment(environment, int(self._environment_seeds.integers(2**31)))
        return environment

    def _run_state(self) -> dict[str, Any]:
        return super()._run_state() | {
            "environment_seeds": random_state(self._environment_seeds),
            "num_steps": self.num_steps,
            "train_environments": [take_snapshot(environment, in_episode=True) for environment in self.train_envs],
            "train_state": None if self.train_state is None else self.train_state[:-2],
            "agent_train_state": self._agent.training_state,
        }

    def _set_run_state(self, stored: Any) -> None:
        run = dict(zip((*_RUN, *_PARALLEL), fields(stored, (*_RUN, *_PARALLEL), "the run"), strict=True))
        super()._set_run_state({name: run[name] for name in _RUN})
        set_random_state(self._environment_seeds, run["environment_seeds"], "the seeds of environments")
        self.num_steps = whole(run["num_steps"], 0, _MOST_STEPS, "num_steps")
        self.train_state = self._read_train_state(run["train_state"])
        self._agent.training_state = self._read_agent_state(run["agent_train_state"])
        snapshots = listed(run["train_environments"], len(self.train_envs), "the environments")
        if len(snapshots) < len(self.train_envs):
            raise DamagedFileError(f"it has {len(snapshots)} environments, and the run {len(self.train_envs)}")
        for environment, snapshot in zip(self.train_envs, snapshots, strict=True):
            restore_environment(environment, snapshot)

    def _read_train_state(self, stored: Any) -> Any:
        if stored is None:
            return None
        what, count = "the train state", len(self.train_envs)
        seen, *others = parts if len(parts := listed(stored, 4, what)) == 4 else refuse(what, parts, "four arrays")
        frames = stored_array(seen, "float64", (2, count, *self._agent.observation_shape, 1), what)
        rewards, terminals, ends = (stored_array(part, "float64", (count,), what) for part in others)
        return frames, rewards, terminals, ends, [], []

    def _read_agent_state(self, stored: Any) -> tuple[Any, ...]:
        what, seen = "the agent's train state", self._agent.observation_shape
        parts = listed(stored, 3, what)
        if len(parts) < 3:
            refuse(what, parts, "three arrays")
        shapes = (self._agent.state_shape, seen, seen)
        return tuple(
            None if part is None else observed(part, shape, what) for part, shape in zip(parts, shapes, strict=True)
        )

    def _save_tensorboard_summaries(self, *numbers: Any) -> None:
        if self._summary_writer is not None:  # Dopamine's takes for granted that the agent has one.
            super()._save_tensorboard_summaries(*numbers)

    def _maybe_save_single_summary(self, *numbers: Any, **options: Any) -> None:
        if self._summary_writer is not None:
            super()._maybe_save_single_summary(*numbers, **options)


_SCHEDULES: dict[str, Any] = {"continuous_train_and_eval": SparseRunner, "continuous_train": SparseTrainRunner}


@gin.configurable(module="sparse_plugins.rl")
def create_sparse_runner(base_dir: str, schedule: str | None = None, seed: int | None = None) -> ExactRun:
    """The runner that gin describes, in place of Dopamine's `create_runner`.

    Args:
        base_dir: Folder of the run.
        schedule: 'continuous_train_and_eval' or 'continuous_train'; None for what gin binds to
            `create_runner.schedule`, or the first. Agents of the Atari-100k benchmark have a schedule of their own.
        seed: Seed of the environments; None for the agent's.

    Returns:
        A runner; call `run_experiment`.

    Raises:
        ValueError: For another schedule, or if no agent is chosen, or one that has a schedule of its own.

    Example:
        >>> import tempfile
        >>> with gin.unlock_config():
        ...     _ = gin.parse_config_file("sparse_plugins/rl/dopamine/configs/cartpole_dqn.gin")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     type(create_sparse_runner(folder)).__name__
        'SparseTrainRunner'
        >>> gin.clear_config()
    """
    if issubclass(dense_agent_class(), atari_100k_rainbow_agent.Atari100kRainbowAgent):
        if schedule is not None:
            raise ValueError(
                f"schedule is {schedule!r}, and agents of the Atari-100k benchmark have one of their own: leave it out."
            )
        return SparseDataEfficientRunner(base_dir, seed=seed)
    name = schedule or bound("create_runner.schedule", default="continuous_train_and_eval")
    if name not in _SCHEDULES:
        raise ValueError(f"create_runner.schedule is {name!r}; allowed are {', '.join(_SCHEDULES)}.")
    return _SCHEDULES[name](base_dir, seed=seed)


def dense_agent_class() -> type:
    """Dopamine's class of the agent that gin chooses.

    Raises:
        ValueError: If none is chosen, or one that is unknown.
    """
    return next(base for base in chosen_agent().__mro__ if base.__module__.startswith("dopamine."))
