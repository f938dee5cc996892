"""An Atari game that remembers how it came to be where it is, so that it can be led there again.

The emulator could give a copy of its state, but reading one that a stranger has changed destroys the memory of the
process. A seed and the actions since are enough, and do no harm.
"""

import zlib
from typing import Any

import gymnasium
import numpy as np

from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.core.storage.values import fields, refuse, stored_array, whole
from sparse_plugins.rl.dopamine.checkpoints.random_states import random_state, set_random_state

__all__ = ["LoggedAtari"]

_RESEED_AFTER = 50_000
_UNBOUNDED = 1_000_000  # frames of an episode where the emulator knows no limit
_RESET = 255
_NAMES = ("seeds", "seed", "actions", "memory")


class LoggedAtari(gymnasium.Wrapper):
    """Around ALE's environment of one game: keeps its seed and its actions.

    A reset after more than 50,000 frames gives the game a fresh seed, for which ALE loads it again (90 ms). So playing
    again takes half a minute at the most, and the log a byte a frame.

    Args:
        env: An `ale_py.AtariEnv`.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._seeds = np.random.default_rng()
        self._seed: int | None = None
        self._actions: list[Any] = []

    @property
    def ale(self) -> Any:
        """The emulator; Dopamine reads screens and lives from it."""
        return self.unwrapped.ale  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode; a seed decides this one and all that follow."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        if seed is None and self._seed is not None and len(self._actions) <= _RESEED_AFTER:
            self._actions.append(_RESET)
            return self.env.reset(options=options)
        self._seed = int(self._seeds.integers(1 << 31))
        self._actions = []
        return self.env.reset(seed=self._seed, options=options)

    def step(self, action: Any) -> Any:
        """Plays an action."""
        self._actions.append(int(action) if self._dtype == np.uint8 else np.array(action, np.float32))
        return self.env.step(action)

    def get_state(self) -> dict[str, Any]:
        """Random numbers for the seeds to come, the seed, the actions since, and a checksum of where they lead."""
        rows = [np.broadcast_to(action, self._row_shape) for action in self._actions]
        actions = np.asarray(rows, self._dtype).reshape(len(rows), *self._row_shape)
        return dict(zip(_NAMES, (random_state(self._seeds), self._seed, actions, self._checksum()), strict=True))

    def set_state(self, state: Any) -> None:
        """Plays the game again from its seed.

        Raises:
            DamagedFileError: If the state is no such one, or leads elsewhere than it did.
        """
        seeds, seed, actions, memory = fields(state, _NAMES, "the game")
        limit = _RESEED_AFTER + (self.ale.getInt("max_num_frames_per_episode") or _UNBOUNDED)
        shape = (None, *self._row_shape)
        actions = stored_array(actions, self._dtype.name, shape, "the game's actions", limit + 1000)
        if self._dtype == np.uint8:
            if (wrong := actions[(actions != _RESET) & (actions >= self.action_space.n)]).size:  # type: ignore[attr-defined]
                refuse("an action", int(wrong[0]), f"0 to {self.action_space.n - 1}")  # type: ignore[attr-defined]
        elif not (np.isfinite(actions) & (np.abs(actions) <= _RESET)).all():
            refuse("an action", "not finite", "numbers")
        if seed is None and len(actions):
            refuse("the game's seed", seed, "a number where there are actions")
        self._seed = None if seed is None else whole(seed, 0, (1 << 31) - 1, "the game's seed")
        set_random_state(self._seeds, seeds, "the game's seeds")
        self._actions = []
        if self._seed is None:
            return
        self.env.reset(seed=self._seed)
        for row in actions:
            if (row == _RESET).all():
                self._actions.append(_RESET)
                self.env.reset()
            else:
                self.step(int(row) if self._dtype == np.uint8 else row)
        if self._checksum() != memory:
            raise DamagedFileError(
                "the game's actions lead elsewhere than when they were noted: they were changed, or ale-py or the ROM "
                "file is another one"
            )

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.unwrapped.continuous else np.uint8)  # type: ignore[attr-defined]

    @property
    def _row_shape(self) -> tuple[int, ...]:
        return self.action_space.shape or ()

    def _checksum(self) -> int:
        return zlib.crc32(self.ale.getRAM().tobytes())
