"""Any Gymnasium vector environment for the training loops."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.selection.counts import check_positive
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure, VectorEnvironment, VectorStep

if TYPE_CHECKING:  # loaded by whoever makes the environments
    import gymnasium

__all__ = ["gymnasium_vector"]


def gymnasium_vector(
    env: "gymnasium.vector.VectorEnv",
    *,
    seed: int,
    first_slot: int = 0,
    name: str | None = None,
    timeout: float | None = None,
) -> VectorEnvironment:
    """A Gymnasium vector environment as a `VectorEnvironment`.

    Gymnasium can't save the state of an environment: `restore` starts new episodes, with seeds not used before.

    Args:
        env: Any `gymnasium.vector.VectorEnv` with discrete actions that resets environments at the next step.
        seed: Seed of the run, 0 or more.
        first_slot: Number of the first environment among all of the run, so that two objects with the same seed differ.
        name: For messages and tables; by default the id the environment was made with.
        timeout: Seconds after which a step of an `AsyncVectorEnv` that does not return is a failure; None to wait for
            ever. A worker process that dies is noticed in any case.

    Returns:
        The environment; it closes `env` when it is closed.

    Raises:
        TypeError: If `env` is no vector environment.
        ValueError: If `env` resets environments in the same step or never, its actions are not discrete, or its
            observations are not arrays.

    Example:
        >>> import gymnasium
        >>> env = gymnasium_vector(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"), seed=0)
        >>> env.reset().frames.shape, env.num_actions, env.resumes_exactly
        ((2, 4), 2, False)
        >>> env.close()
    """
    if not hasattr(env, "single_action_space"):
        raise TypeError(
            f"env is {env}, which is no Gymnasium vector environment; give gymnasium.make_vec(id, num_envs=size), or "
            "gymnasium.vector.SyncVectorEnv([make] * size) of functions that make one each."
        )
    env_name = name or getattr(env.spec, "id", None) or type(env).__name__
    mode = env.metadata.get("autoreset_mode")
    if getattr(mode, "value", mode) != "NextStep":
        raise ValueError(
            f"{env_name} has autoreset_mode {mode}; the loops need a reset at the next step. Build it with "
            'gymnasium.make_vec(..., vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}).'
        )
    actions, frames = env.single_action_space, env.single_observation_space
    if type(actions).__name__ != "Discrete":
        raise ValueError(
            f"{env_name} has the action space {actions}; agents that choose among actions need a Discrete one."
        )
    if frames.shape is None or frames.dtype is None:
        raise ValueError(
            f"{env_name} has the observation space {frames}; the loops need one array. Wrap it in "
            "gymnasium.wrappers.FlattenObservation before it is put into the vector."
        )
    return _GymnasiumVector(
        env,
        env_name,
        (whole_number("seed", seed, 0), whole_number("first_slot", first_slot, 0)),
        None if timeout is None else check_positive("timeout", timeout),
    )


class _GymnasiumVector:
    resumes_exactly = False

    def __init__(self, env: Any, name: str, seed: tuple[int, int], timeout: float | None) -> None:
        self.name = name
        self.num_envs = int(env.num_envs)
        self.num_actions = int(env.single_action_space.n)
        self.frame_shape = tuple(env.single_observation_space.shape)
        self.frame_dtype = np.dtype(env.single_observation_space.dtype)
        self._env, self._seed, self._timeout = env, seed, timeout
        self._lowest_action = int(getattr(env.single_action_space, "start", 0))
        self._resets = self._steps = 0
        self._sent: np.ndarray | None = None
        self._ended: np.ndarray | None = None
        self._is_broken = False
        self._workers = getattr(env.unwrapped, "processes", [])

    def reset(self) -> VectorStep:
        sequence = np.random.SeedSequence(self._seed[0], spawn_key=(self._seed[1], self._resets))
        seed = int(sequence.generate_state(1)[0]) >> 1
        self._resets += 1
        try:
            frames, _ = self._env.reset(seed=seed)
        except Exception as error:
            raise self._failure(error) from error
        self._sent, self._ended = None, np.zeros(self.num_envs, bool)
        nothing = np.zeros(self.num_envs, bool)
        return VectorStep(self._frames(frames), nothing.astype(np.float32), nothing, nothing, ~nothing)

    def send(self, actions: np.ndarray) -> None:
        if self._ended is None or self._sent is not None:
            missing = "reset()" if self._ended is None else "recv()"
            raise RuntimeError(f"send() comes after {missing}; call it first.")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions are {actions.dtype}{list(actions.shape)}; give one integer for each of {self.num_envs} slots."
            )
        self._sent = actions.astype(np.int64) + self._lowest_action
        if hasattr(self._env, "step_async"):
            try:
                self._env.step_async(self._sent)
            except Exception as error:
                raise self._failure(error) from error

    def recv(self) -> VectorStep:
        if self._sent is None or self._ended is None:
            raise RuntimeError("recv() waits for a step that was never begun; call send(actions) first.")
        try:
            if hasattr(self._env, "step_async"):
                frames, rewards, terminated, truncated, _ = self._env.step_wait(timeout=self._timeout)
            else:
                frames, rewards, terminated, truncated, _ = self._env.step(self._sent)
        except Exception as error:
            raise self._failure(error) from error
        opens, self._sent, self._steps = self._ended, None, self._steps + 1
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        self._ended = terminated | truncated
        rewards = np.where(opens, 0, rewards).astype(np.float32)
        return VectorStep(self._frames(frames), rewards, terminated, truncated & ~terminated, opens)

    def save(self) -> dict[str, np.ndarray]:
        return {"resets": np.array(self._resets), "steps": np.array(self._steps)}

    def restore(self, saved: dict[str, np.ndarray]) -> VectorStep:
        if set(saved) != {"resets", "steps"} or not all(
            part.shape == () and part.dtype.kind in "iu" and 0 <= part < 1 << 53 for part in saved.values()
        ):
            raise ValueError(f"this is no state of {self.name}, or it was changed; it has resets and steps alone.")
        self._resets, self._steps = int(saved["resets"]), int(saved["steps"])
        return self.reset()

    def close(self) -> None:
        if not self._is_broken:
            self._env.close()
        for worker in self._workers:  # one that hangs does not end when asked to
            worker.kill()
            worker.join()
        self._env.unwrapped.closed = True

    def _frames(self, frames: np.ndarray) -> np.ndarray:
        return np.array(frames, self.frame_dtype)  # a copy: some environments write into the same array at each step

    def _failure(self, error: Exception) -> EnvironmentFailure:
        self._is_broken = True
        for worker in self._workers:
            worker.join(0.1)  # one that is about to end should not look alive
        dead = [f"{i} (exit code {worker.exitcode})" for i, worker in enumerate(self._workers) if not worker.is_alive()]
        which = f"the worker of environment {', '.join(dead)} is dead" if dead else "an environment failed"
        return EnvironmentFailure(
            f"{self.name}, {self.num_envs} environments, step {self._steps}: {which}: {type(error).__name__}: {error}. "
            "Make the environment anew and go on from the last checkpoint."
        )
