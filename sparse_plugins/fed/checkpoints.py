"""Checkpoints of a federated run, counted in rounds."""

from pathlib import Path
from typing import Any

from sparse_plugins import checkpoints
from sparse_plugins.core.trees import PyTree

__all__ = ["Checkpoint", "Checkpoints"]


class Checkpoint(checkpoints.Saved):
    """What `Checkpoints.restore` found.

    Attributes:
        extra: What was saved beside the state, as JSON has it: tuples come back as lists.
    """

    __slots__ = ()

    @property
    def round(self) -> int:
        """Number of finished rounds, as given to `save`."""
        return self.step

    @property
    def state(self) -> Any:
        """Tree of the structure and types that were asked for."""
        return self.tree


class Checkpoints(checkpoints.Checkpoints):
    """A folder of the newest checkpoints of one run, from which it resumes bit-exactly.

    Each is written whole or not at all, carries checksums, and is never overwritten; see `rl.Checkpoints`.

    Args:
        folder: Where they are; made when it is needed.
        keep: How many finished ones to keep, 1 or more. With 2, a damaged one costs the rounds since the one before.
        updater: The updater, the server optimizer or the algorithm of the run. Recorded in every checkpoint and
            compared when one is read, since a state does not tell whether RigL or a static mask is to go on from it;
            of an algorithm of `sparse_federated_averaging` also how updates are grown, sent and averaged, and widths.

    Raises:
        ValueError: If `keep` is less than 1, or there is no updater in `updater`.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> state = {"w": jnp.arange(3.0), "round": 7}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     checkpoints.save(7, state, extra={"bytes": 120})
        ...     found = checkpoints.restore(like=state)
        >>> found.round, found.state["w"].tolist(), found.state["round"], found.extra
        (7, [0.0, 1.0, 2.0], 7, {'bytes': 120})
    """

    unit = "round"

    def __init__(self, folder: str | Path, keep: int = 2, updater: Any = None) -> None:
        super().__init__(folder, keep, updater)
        parts = getattr(getattr(updater, "apply", None), "__self__", None)
        if settings := getattr(parts, "settings", ""):
            self._identity = f"{self._identity}; {settings}"

    def rounds(self) -> list[int]:
        """Numbers of the checkpoints there are, ascending; some may turn out to be damaged.

        Raises:
            NotADirectoryError: If the folder is a file.
        """
        return self.steps()

    def restore(self, like: PyTree, *, keep_targets: bool = True) -> Checkpoint | None:
        """Reads the newest checkpoint that can be read; see `rl.Checkpoints.restore`.

        Args:
            like: A state of the structure, shapes and types to restore, such as that of the algorithm's `init`.
            keep_targets: False goes on from a checkpoint of another updater or of other sparsities, on purpose.

        Returns:
            The checkpoint, its arrays where those of `like` are; None if there is none.

        Raises:
            CheckpointAccessError: If it can't be read for a reason outside it, such as too many open files or too
                little memory; nothing is set aside.
            CheckpointMismatchError: If it is the checkpoint of another model or optimizer, of a dense run, or of one
                that is to be sparse in another way.
        """
        found = super().restore(like, keep_targets=keep_targets)
        return None if found is None else Checkpoint(*found)
