"""A run of the study, from its newest checkpoint to its end."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.fed_emnist.config import Run, StudyConfig
from experiments.fed_emnist.layout import Row
from experiments.fed_emnist.train import Evaluation, averaging, first_state, prepare, train
from experiments.record.files import write_whole
from experiments.record.layers import masks_of
from experiments.record.runs import Recorder
from sparse_plugins import fed
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.fed.checkpoints import Checkpoints


def execute(config: StudyConfig, batch: Sequence[Recorder]) -> bool:
    """Trains one run, alone in its batch, with its ledger and its last parameters in its folder.

    Raises:
        CheckpointMismatchError: The run's checkpoint is none of this run.
    """
    (recorder,) = batch
    (algorithm_name, sparsity), seed = recorder.run
    run = Run(algorithm_name, sparsity, seed)
    task, ledger = prepare(config), fed.Ledger()
    algorithm = averaging(config, run, task, ledger)
    checkpoints = Checkpoints(recorder.scratch)
    state = _newest(checkpoints, first_state(run, task, algorithm), ledger, recorder)
    bar = tqdm(total=config.rounds, desc=str(run), unit="round", leave=False, disable=config.jobs > 1 or None)
    try:
        for step in train(config, run, task, algorithm, state):
            state = step.state
            bar.update(state.round - bar.n)
            if step.evaluation is not None:
                recorder.add(_row(run, step.evaluation, ledger), masks_of(state.params, state.opt_state))
                bar.set_postfix_str(f"{step.evaluation.test_accuracy:.1%} right")
            if _is_checkpoint_due(config, state.round):
                checkpoints.save(state.round, state, {"ledger": ledger.to_csv(), "record": recorder.save()})
    except Exception:
        with contextlib.suppress(OSError):  # nor can it hide what went wrong
            ledger.save(recorder.folder / "ledger.csv")
        raise
    finally:
        bar.close()
    write_whole(recorder.folder / "params.npz", _npz(state.params))
    ledger.save(recorder.folder / "ledger.csv")
    return True


def _newest(checkpoints: Checkpoints, first: Any, ledger: fed.Ledger, recorder: Recorder) -> Any:
    """State of the newest checkpoint, whose entries go into the ledger and the record; the first state without."""
    saved = checkpoints.restore(like=first)
    if saved is None:
        recorder.restart()
        return first
    try:
        recorder.restart(saved.extra["record"])
        for entry in fed.Ledger.from_csv(saved.extra["ledger"]):
            ledger.add(entry)
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointMismatchError(
            f"the checkpoint of round {saved.round} in {recorder.scratch} is none of this version: {error}"
        ) from error
    return saved.state


def _is_checkpoint_due(config: StudyConfig, finished: int) -> bool:
    return config.checkpoint_every > 0 and 0 < finished < config.rounds and finished % config.checkpoint_every == 0


def _row(run: Run, evaluation: Evaluation, ledger: fed.Ledger) -> Row:
    total = ledger.total()
    return Row(**run._asdict(), **evaluation._asdict(), down_bytes=total.down, up_bytes=total.up + total.growth)


def _npz(params: Any) -> bytes:
    """The parameters in use by name, for `numpy.load`."""
    file = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
    np.savez(file, **arrays)
    return file.getvalue()
