"""A run from its folder's newest checkpoint to its end, or to the signal to stop; for any loop."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sparse_plugins.checkpoints import CheckpointMismatchError, Checkpoints, SettingsMismatchError
from sparse_plugins.core.schedules import whole_number
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.stopping import stop_requests

__all__ = ["Resumable", "to_the_end"]

_SETTINGS = "settings.json"
_ANSWER = "Stopping: the chunk under way is finished and saved first; Ctrl-C again drops it."


class Resumable(Protocol):
    """A training that goes on in chunks."""

    def template(self) -> PyTree:
        """The tree of `save`, as shapes and dtypes or as arrays."""

    def begin(self) -> None:
        """Starts anew."""

    def restore(self, tree: PyTree, extra: Any) -> None:
        """Goes on from what `save` gave, instead of `begin`."""

    def advance(self, iterations: int) -> Any:
        """Trains; returns a point of the curve, of what JSON takes."""

    def save(self) -> tuple[PyTree, Any]:
        """All that `restore` needs: a tree of arrays, and what JSON takes."""


def to_the_end(
    run: Resumable,
    last: int,
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    chunk_iterations: int,
    checkpoint_chunks: int,
    report: Callable[[Any], None] | None = None,
) -> tuple[list[Any], bool]:
    """Trains to the end, going on where the folder's run stopped.

    On Ctrl-C or SIGTERM the current chunk is finished and saved, and the run returns unfinished, also if that chunk was
    the last: what asked to stop did not mean what comes behind it. Call it again to go on. Ctrl-C again is a
    KeyboardInterrupt, which costs the steps since the last checkpoint.

    Args:
        run: What to train.
        last: Iterations to make; a finished run can be prolonged.
        folder: Folder of this run alone; it is made if it is missing.
        settings: What makes the run what it is and JSON takes; recorded and compared.
        chunk_iterations: Iterations between two points of the curve.
        checkpoint_chunks: Chunks between two checkpoints; there is one at the end, too.
        report: Called with every point.

    Returns:
        All points, those before an interruption included as JSON gives them back; whether all iterations are made and
        nothing asked to stop.

    Raises:
        SettingsMismatchError: If the folder belongs to another run, which is left alone, or does not say to which.
        CheckpointAccessError: If a checkpoint can't be written or read; nothing is lost.
        CheckpointMismatchError: If its checkpoint belongs to another agent or environment.
    """
    whole_number("chunk_iterations", chunk_iterations, 1)
    whole_number("checkpoint_chunks", checkpoint_chunks, 1)
    _check_settings(Path(folder), json.loads(json.dumps(settings)))
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    with stop_requests(_ANSWER) as request:
        saved = checkpoints.restore(like=run.template())
        if saved is None:
            done, curve = 0, []
            run.begin()
        else:
            try:
                done, curve = saved.step, list(saved.extra["curve"])
                run.restore(saved.tree, saved.extra["run"])
            except (LookupError, TypeError, ValueError) as error:
                raise CheckpointMismatchError(
                    f"the checkpoint of step {saved.step} in {folder} is whole, but this run can't go on from it: "
                    f"{error}"
                ) from error
        del saved  # its memory is about to be donated
        for number in range(-(-(last - done) // chunk_iterations)):
            count = min(chunk_iterations, last - done)
            curve.append(run.advance(count))
            done += count
            if report is not None:
                report(curve[-1])
            stops = bool(request) or done == last
            if stops or (number + 1) % checkpoint_chunks == 0:
                tree, extra = run.save()
                checkpoints.save(done, tree, extra={"curve": curve, "run": extra})
            if stops:
                break
    return curve, done >= last and not request


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / _SETTINGS
    half = path.with_suffix(".partial")
    if not path.exists():
        if folder.is_dir() and any(entry != half for entry in folder.iterdir()):
            raise SettingsMismatchError(
                f"{folder} is not empty and has no {_SETTINGS}, so it is no run's; choose another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(settings, indent=1))
        os.replace(half, path)
        return
    try:
        stored = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsMismatchError(
            f"{path} is damaged and does not tell to which run the folder belongs ({error}). Copy it from a run with "
            "the same settings, or choose another folder."
        ) from error
    for name in dict.fromkeys([*settings, *stored]):
        if name.startswith("updater") and name not in stored:
            continue  # a folder of before updaters were recorded
        if (old := stored.get(name, "missing")) != (new := settings.get(name, "missing")):
            raise SettingsMismatchError(
                f"{path} is that of another run: {name} is {old!r} there and {new!r} here. Give the run its old "
                "settings again, or the new ones another folder; to change a run on purpose, write the new value into "
                "that file."
            )
