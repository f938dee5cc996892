"""The plan of a federated study, and a run of it, from its newest checkpoint to its end."""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.fed_emnist.config import FederatedSettings
from experiments.fed_emnist.layout import about, data_name
from experiments.fed_emnist.train import Evaluation, averaging, first_state, prepare, train
from experiments.harness.cells import Run
from experiments.harness.files import write_whole
from experiments.harness.layers import masks_of
from experiments.harness.recorder import Recorder
from experiments.harness.study import Plan, first_plan
from sparse_plugins import fed
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.fed.aggregation import Aggregation
from sparse_plugins.fed.checkpoints import Checkpoints


def plan(config: FederatedSettings) -> Plan:
    """The plan of a study.

    Raises:
        DatasetUnavailableError: the data can't be had.
        ValueError: the settings do not fit data or model.
    """
    task, cells = prepare(config), list(config.cells())
    text = (
        f"{len(cells) * len(config.seeds)} runs of {config.rounds} rounds on {data_name(dataclasses.asdict(config))}."
    )
    plan = first_plan(cells, lambda cell: (config.updater(Run(cell, config.seeds[0])), task.shapes()))
    return Plan(
        config,
        cells,
        functools.partial(execute, config),
        f"{text} {plan}",
        {"about": about(dataclasses.asdict(config)), "classes": task.classes},
        passes=(CheckpointMismatchError,),
        jobs=config.jobs,
    )


def execute(config: FederatedSettings, batch: Sequence[Recorder]) -> bool:
    """Trains one run, alone in its batch."""

    def numbers(found: Evaluation, state: fed.SparseServerState, total: Any) -> dict[str, Any]:
        measured = found._asdict() | {"down_bytes": total.down, "up_bytes": total.up + total.growth}
        return {name: value for name, value in measured.items() if name != "round"}

    (recorder,) = batch
    train_run(config, recorder.run, recorder, numbers)
    return True


def train_run(
    config: FederatedSettings,
    run: Run,
    recorder: Recorder,
    numbers: Callable[[Evaluation, fed.SparseServerState, Any], dict[str, Any]],
    aggregation: Aggregation = Aggregation(),
) -> fed.Ledger:
    """Trains a run, with its ledger and its last parameters in its folder.

    Args:
        config: Settings of the federated study.
        run: Run of that study; its seed is that of the recorder.
        recorder: Gets a row for every evaluation.
        numbers: From an evaluation, the state and all bytes so far to the numbers of its row.
        aggregation: How updates become one.

    Returns:
        The ledger.

    Raises:
        CheckpointMismatchError: The run's checkpoint is none of this run.
    """
    task, ledger = prepare(config), fed.Ledger()
    algorithm = averaging(config, run, task, ledger, aggregation)
    checkpoints = Checkpoints(recorder.scratch, updater=algorithm)
    state = _newest(checkpoints, first_state(config, run, task, algorithm), ledger, recorder)
    bar = tqdm(total=config.rounds, desc=str(recorder.run), unit="round", leave=False, disable=config.jobs > 1 or None)
    try:
        for step in train(config, run, task, algorithm, state):
            state = step.state
            bar.update(state.round - bar.n)
            if step.evaluation is not None:
                found = numbers(step.evaluation, state, ledger.total())
                recorder.add(state.round, masks_of(state.params, state.opt_state), **found)
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
    return ledger


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


def _is_checkpoint_due(config: FederatedSettings, finished: int) -> bool:
    return config.checkpoint_every > 0 and 0 < finished < config.rounds and finished % config.checkpoint_every == 0


def _npz(params: Any) -> bytes:
    """The parameters in use by name, for `numpy.load`."""
    file = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
    np.savez(file, **arrays)
    return file.getvalue()
