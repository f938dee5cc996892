"""Several copies of one game in ALE's vector environment, whose state can be saved and restored."""

import dataclasses
import json
import weakref
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.selection.counts import check_positive
from sparse_plugins.rl.environments.atari.action_log import ActionLog, slot_seeds
from sparse_plugins.rl.environments.atari.protocols import AtariProtocol, machado
from sparse_plugins.rl.environments.atari.roms import ale, game_name, rom_file
from sparse_plugins.rl.environments.atari.watchdog import Watchdog
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure, VectorStep

__all__ = ["AtariVector"]

_MACHADO = machado()
_PER_SLOT = ("renewals", "lengths", "checksums")


class AtariVector:
    """Several copies of one game: a `VectorEnvironment` of uint8 frames whose state can be saved and restored exactly.

    ALE can't save the state of a vector, so each slot keeps its seed and the actions since, a byte a step, and
    `restore` plays them again: seconds per 10,000 steps and slot, divided among the cores. To bound this a slot gets a
    fresh seed at the end of an episode once `reseed_after` steps lie behind its last one.

    For two halves that take turns, make two objects with the same seed, the second with `first_slot` where the first
    ends; no two slots ever get the same seed.

    Args:
        game: Name in any usual spelling, such as 'MsPacman', 'ms_pacman' or 'ALE/MsPacman-v5'.
        num_envs: Copies of the game.
        seed: Seed of the run, 0 or more. What happens depends on it, the slots and the actions, not on `num_threads`.
        protocol: How the game is played; by default that of Machado et al.
        first_slot: Number of the first copy among all of the run.
        num_threads: Threads that emulate; 0 for one per core, at most one per copy.
        reseed_after: Steps after which a slot gets a fresh seed. ALE loads the game again for one, about 90 ms during
            which the other slots wait: at 20,000 steps below 2% of the time of one core. Raise it with many cores, up
            to the length of the run.
        timeout: Seconds after which a step that does not return is a failure, as when a thread of ALE has died; None to
            wait for ever. Only an emulator that never ends a frame can't be interrupted.

    Attributes:
        name: ALE's name of the game.
        num_actions: Actions are 0 to `num_actions - 1`.
        frame_shape: Height and width.

    Raises:
        ImportError: If ale-py is missing or too old.
        ValueError: If there is no such game, or an argument has a value that is not allowed.
        FileNotFoundError: If the game's ROM file is missing or damaged.

    Example:
        >>> pong = AtariVector("Pong", 2, seed=0)
        >>> step = pong.reset()
        >>> pong.send(np.array([0, 3]))
        >>> step = pong.recv()
        >>> step.frames.shape, step.frames.dtype, step.first.tolist(), pong.num_actions
        ((2, 84, 84), dtype('uint8'), [False, False], 6)
        >>> pong.close()
    """

    frame_dtype = np.dtype(np.uint8)
    resumes_exactly = True

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        seed: int,
        protocol: AtariProtocol = _MACHADO,
        first_slot: int = 0,
        num_threads: int = 0,
        reseed_after: int = 20_000,
        timeout: float | None = 120.0,
    ) -> None:
        self.name = game_name(game)
        self.num_envs = whole_number("num_envs", num_envs, 1)
        self.frame_shape = tuple(protocol.frame_shape)
        self._seed = whole_number("seed", seed, 0)
        self._slots = whole_number("first_slot", first_slot, 0) + np.arange(num_envs)
        if self._slots[-1] >= 1 << 14:
            raise ValueError(f"first_slot {first_slot} and num_envs {num_envs} pass slot 16,383, the last there is.")
        self._reseed_after = whole_number("reseed_after", reseed_after, 1)
        self._protocol = protocol
        self._rom = rom_file(self.name)
        self._ale = ale()[0](
            rom_path=self._rom,
            num_envs=num_envs,
            frame_skip=protocol.frame_skip,
            stack_num=1,
            img_height=protocol.frame_shape[0],
            img_width=protocol.frame_shape[1],
            grayscale=True,
            maxpool=protocol.max_pool,
            noop_max=protocol.noop_starts,
            use_fire_reset=protocol.fire_start,
            episodic_life=False,  # ALE would start a new game where a life is lost
            life_loss_info=protocol.episodic_life,
            reward_clipping=False,
            max_episode_steps=protocol.max_frames,
            repeat_action_probability=protocol.sticky_actions,
            full_action_space=protocol.full_action_set,
            batch_size=0,
            num_threads=whole_number("num_threads", num_threads, 0),
            thread_affinity_offset=-1,
            autoreset_mode="NextStep",
        )
        self.num_actions = len(self._ale.get_action_set())
        self._watchdog = _watchdog(self._ale, num_envs, timeout)
        if self._watchdog is not None:
            weakref.finalize(self, self._watchdog.close)
        self._renewals = np.full(num_envs, -1)
        self._strength = [1.0] * num_envs
        self._steps = 0
        self._is_working = False
        self._last: VectorStep | None = None
        self._lives = self._played = np.zeros(num_envs, np.int64)
        self._log = ActionLog(num_envs)

    def reset(self) -> VectorStep:
        """Starts new games in all slots; each call gives them fresh seeds."""
        self._renewals = self._renewals + 1
        return self._start(np.arange(self.num_envs), self._seeds())

    def send(self, actions: np.ndarray) -> None:
        """Hands over int[E] actions and returns while the emulators play them.

        Raises:
            ValueError: If the actions are not E integers from 0 to `num_actions - 1`.
            RuntimeError: If `reset` or `recv` has to be called first.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions are {actions.dtype}{list(actions.shape)}; give one integer for each of {self.num_envs} slots."
            )
        # A worker of ALE that gets an action it does not know dies without a word.
        if actions.min() < 0 or actions.max() >= self.num_actions:
            raise ValueError(f"actions are {actions.tolist()}; {self.name} has actions 0 to {self.num_actions - 1}.")
        last = self._idle("send")
        if self._protocol.episodic_life:
            actions = np.where(last.terminated | last.truncated, 0, actions)
        self._log.append(actions)
        self._call(self._ale.send, actions.tolist(), self._strength)
        self._is_working = True

    def recv(self) -> VectorStep:
        """Waits for the step that `send` began.

        Raises:
            EnvironmentFailure: If an emulator breaks, or the step takes longer than the timeout.
            RuntimeError: If `send` has to be called first.
        """
        if not self._is_working or self._last is None:
            raise RuntimeError("recv() waits for a step that was never begun; call send(actions) first.")
        frames, rewards, terminated, truncated, info = self._call(self._ale.recv)
        self._is_working = False
        self._steps += 1
        opens = self._last.terminated | self._last.truncated
        restarted = opens & (info["episode_frame_number"] < self._played)
        # The game was over before the next life could begin.
        over = opens & ~restarted & (truncated | (terminated & ((info["lives"] == 0) | (info["lives"] >= self._lives))))
        step = VectorStep(
            frames[:, 0],
            np.where(opens, 0, rewards).astype(np.float32),
            terminated & ~opens,
            truncated & ~opens,
            opens,
        )
        self._note(step, info)
        if over.any():
            step = self._start(np.flatnonzero(over), np.full(self.num_envs, -1))
        due = (restarted | over) & (self._log.lengths() > self._reseed_after)
        if due.any():
            self._renewals = self._renewals + due
            step = self._start(np.flatnonzero(due), self._seeds())
        return step

    def save(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, between two steps.

        Returns:
            Seeds, actions since, checksums of the frames to compare with, and what the object was made with.

        Raises:
            RuntimeError: If `reset` or `recv` has to be called first.
        """
        step = self._idle("save")
        return {
            "made_with": np.frombuffer(json.dumps(self._made_with()).encode(), np.uint8),
            "renewals": self._renewals,
            "lengths": self._log.lengths(),
            "actions": self._log.actions(),
            "steps": np.array(self._steps),
            "checksums": _checksums(step.frames),
        }

    def restore(self, saved: dict[str, np.ndarray]) -> VectorStep:
        """Goes on from what `save` gave, by playing the games again from their seeds.

        Args:
            saved: From an object with the same arguments; `num_threads` and `timeout` may differ.

        Returns:
            The step after which it was saved.

        Raises:
            ValueError: If it was saved with other arguments, or the frames come out differently.
        """
        if self._is_working:
            raise RuntimeError("restore() comes between two steps; call recv() first.")
        made_with = _read_made_with(saved)
        differing = [
            f"{k} {made_with.get(k)!r} (here {v!r})" for k, v in self._made_with().items() if made_with.get(k) != v
        ]
        if differing:
            raise ValueError(f"the environment was saved with {', '.join(differing)}; make it with the same.")
        self._check_saved(saved)
        actions, begins = saved["actions"], len(saved["actions"]) - saved["lengths"]
        self._renewals = np.asarray(saved["renewals"])
        seeds = self._seeds()
        # Slots that have fewer steps behind them play anything until theirs begin.
        step = self._start(np.arange(self.num_envs), np.where(begins == 0, seeds, -1))
        for now in range(1, len(actions) + 1):
            self.send(actions[now - 1])
            step = self.recv()
            if (beginning := np.flatnonzero(begins == now)).size:
                step = self._start(beginning, seeds)
        self._renewals = np.array(saved["renewals"])
        self._steps = int(saved["steps"])
        if (wrong := np.flatnonzero(_checksums(step.frames) != saved["checksums"])).size:
            raise ValueError(
                f"{self.name}: slots {wrong.tolist()} show other frames than when they were saved; restore with the "
                "same release of ale-py and the same ROM file."
            )
        return step

    def close(self) -> None:
        """Ends the emulators' threads; the object is of no further use."""
        if self._watchdog is not None:
            self._watchdog.close()
        self._ale = None

    def _start(self, slots: np.ndarray, seeds: np.ndarray) -> VectorStep:
        """New games in some slots; ALE shows all others as they were."""
        if not self._rom.exists():  # ALE would end the process
            raise self._failure(f"{self._rom} is gone, and slots {slots.tolist()} need it for new games")
        frames, info = self._call(self._ale.reset, slots.tolist(), seeds[slots].tolist())
        self._is_working = False
        self._log.restart(slots[seeds[slots] >= 0])
        is_new = np.isin(np.arange(self.num_envs), slots)
        nothing = np.zeros(self.num_envs, bool)
        last = self._last or VectorStep(frames[:, 0], nothing.astype(np.float32), nothing, nothing, nothing)
        step = VectorStep(
            frames[:, 0],
            np.where(is_new, np.float32(0), last.rewards),
            last.terminated & ~is_new,
            last.truncated & ~is_new,
            last.first | is_new,
        )
        self._note(step, info)
        return step

    def _note(self, step: VectorStep, info: dict[str, np.ndarray]) -> None:
        self._last, self._lives, self._played = step, info["lives"], info["episode_frame_number"]

    def _seeds(self) -> np.ndarray:
        return slot_seeds(self._seed, self._slots, self._renewals)

    def _idle(self, what: str) -> VectorStep:
        if self._last is None:
            raise RuntimeError(f"{what}() comes after reset() or restore(saved); call one of them first.")
        if self._is_working:
            raise RuntimeError(f"{what}() comes between two steps; call recv() first.")
        return self._last

    def _check_saved(self, saved: dict[str, np.ndarray]) -> None:
        """Every array is of a kind and size that `save` gives; the actions are played, which takes its time."""
        slots, actions = (self.num_envs,), saved["actions"]
        # A slot that is due for a fresh seed goes on to the end of its episode.
        longest = self._reseed_after + self._protocol.max_frames + 1000
        if not (
            all(saved[name].shape == slots and saved[name].dtype.kind in "iu" for name in _PER_SLOT)
            and saved["steps"].shape == ()
            and saved["steps"].dtype.kind in "iu"
            and actions.dtype == np.uint8
            and actions.shape[1:] == slots
            and len(actions) <= longest
            and not (actions >= self.num_actions).any()
            and ((saved["lengths"] >= 0) & (saved["lengths"] <= len(actions))).all()
            and ((saved["renewals"] >= 0) & (saved["renewals"] < 1 << 17)).all()
        ):
            raise ValueError(f"this is no state of {self.num_envs} games of {self.name}, or it was changed.")

    def _made_with(self) -> dict[str, Any]:
        settings = {"game": self.name, "num_envs": self.num_envs, "seed": self._seed, "first_slot": int(self._slots[0])}
        settings |= {"reseed_after": self._reseed_after, **dataclasses.asdict(self._protocol)}
        return settings | {"frame_shape": list(self.frame_shape)}

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            if self._watchdog is None:
                return function(*arguments)
            with self._watchdog:
                result = function(*arguments)
        except Exception as error:  # ALE throws several kinds
            raise self._failure(str(error)) from error
        if self._watchdog.fired:
            raise self._failure("it did not return in time")
        return result

    def _failure(self, reason: str) -> EnvironmentFailure:
        return EnvironmentFailure(
            f"{self.name}, slots {self._slots[0]} to {self._slots[-1]}, step {self._steps}: {reason}. "
            "Make the environment anew and go on from the last checkpoint."
        )


def _read_made_with(saved: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        if set(saved) != {*_PER_SLOT, "made_with", "actions", "steps"} or saved["made_with"].nbytes > 1 << 16:
            raise ValueError(f"it has {', '.join(sorted(saved))}"[:200])
        return dict(json.loads(saved["made_with"].tobytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"this is no state of a vector of games, or it was changed ({error}).") from error


def _watchdog(vector: Any, num_envs: int, timeout: float | None) -> Watchdog | None:
    """Wakes a call that waits for a worker that has died: results of further actions complete its batch."""
    if timeout is None:
        return None
    rescue = lambda: vector.send([0] * num_envs, [1.0] * num_envs)  # noqa: E731
    return Watchdog(check_positive("timeout", timeout), rescue)


def _checksums(frames: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(frame.tobytes()) for frame in frames], np.int64)
