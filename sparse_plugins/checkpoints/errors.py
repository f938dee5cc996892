"""What a checkpoint that is whole can't be used for, and what keeps one from being used."""

from sparse_plugins.core.restored import CheckpointMismatchError

__all__ = ["CheckpointAccessError", "CheckpointMismatchError", "SettingsMismatchError"]


class SettingsMismatchError(CheckpointMismatchError):
    """The folder belongs to a run with other settings."""


class CheckpointAccessError(OSError):
    """A checkpoint could not be written or read for a reason outside it: no space, no memory, no permission.

    All checkpoints are still there; once the reason is gone, the run can go on.
    """
