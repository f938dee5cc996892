"""Checkpoints from which a run goes on as if it had never stopped, bit-exactly; `fed` and `rl` share them."""

from sparse_plugins.checkpoints.errors import CheckpointAccessError, CheckpointMismatchError, SettingsMismatchError
from sparse_plugins.checkpoints.folder import Checkpoints, Saved

__all__ = ["CheckpointAccessError", "CheckpointMismatchError", "Checkpoints", "Saved", "SettingsMismatchError"]
