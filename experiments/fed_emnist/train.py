"""Federated averaging with masks in its messages, evaluated on the parameters that the clients get."""

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import optax

from experiments.fed_emnist.config import FederatedSettings, growth_of, seed_for
from experiments.harness.cells import Run
from sparse_plugins import core, fed
from sparse_plugins.fed import datasets
from sparse_plugins.fed.aggregation import Aggregation
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend
from sparse_plugins.fed.ledger import DELIVERED

fedjax = fed.import_fedjax()

_EVALUATION_BATCH = 256


class Task(NamedTuple):
    """What all runs of a study share, so that data is read and the model is compiled once.

    Attributes:
        model: FedJAX model.
        gradient: From parameters, batch and key to gradients.
        client_optimizer: Trains the clients.
        train: `fedjax.FederatedData` of the clients.
        test_batches: All test images.
        classes: Outputs of the model.
    """

    model: Any
    gradient: Any
    client_optimizer: Any
    train: Any
    test_batches: list[Any]
    classes: int

    def shapes(self) -> Any:
        """Shapes and dtypes of the parameters."""
        return jax.eval_shape(self.model.init, jax.random.PRNGKey(0))


class Evaluation(NamedTuple):
    """The model that the clients get after `round` rounds; `layout.NUMBERS` says what the numbers are."""

    round: int
    test_accuracy: float
    test_loss: float
    train_loss: float
    measured_sparsity: float


class Step(NamedTuple):
    """The state after a round, or before the first; evaluated if it was time."""

    state: fed.SparseServerState
    evaluation: Evaluation | None


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@functools.cache
def prepare(config: FederatedSettings) -> Task:
    """Loads the data, builds the model, and checks that all runs can start on them.

    Raises:
        DatasetUnavailableError: the data can't be had.
        ValueError: more clients per round than there are, or a structure that does not fit a layer.
    """
    train, test = datasets.load(config.dataset, **config.data_options)
    is_idx, largest = config.dataset == "idx", 0
    if is_idx:
        every = (data.all_examples()["y"] for split in (train, test) for _, data in split.clients())
        largest = max(int(labels.max()) for labels in every if len(labels))
    if largest >= 62:
        raise ValueError(f"{config.data_dir} has a class {largest}; the networks tell 62 apart, counted from 0.")
    only_digits = config.only_digits or config.dataset == "digits" or (is_idx and largest < 10)
    build = {"dense": fedjax.models.emnist.create_dense_model, "conv": fedjax.models.emnist.create_conv_model}
    model = build[config.model](only_digits=only_digits)
    _sampler(config, train, seed=0)
    task = Task(
        model=model,
        gradient=fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(config.client_learning_rate),
        train=train,
        test_batches=_batches(dataset for _, dataset in test.clients()),
        classes=10 if only_digits else 62,
    )
    for cell in config.cells():
        jax.eval_shape(config.updater(Run(cell, 0)).init_state, task.shapes())
    return task


def averaging(
    config: FederatedSettings, run: Run, task: Task, ledger: fed.Ledger, aggregation: Aggregation = Aggregation()
) -> Any:
    """The federated algorithm of a run, which writes its bytes into a ledger."""
    learning_rate: Any = config.server_learning_rate
    if config.server_schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(learning_rate, config.rounds)
    server_optimizer = optax.adam(learning_rate, eps=config.server_epsilon)
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=config.batch_size, num_epochs=config.local_epochs)
    wire = fed.Wire(down=config.wire, up=config.wire)
    backend = fedjax.for_each_client_backend(ScanBackend()) if config.backend == "scan" else contextlib.nullcontext()
    with backend:
        if config.clients == "dense":
            return _dense_clients(task, server_optimizer, config.updater(run), batches, wire, ledger)
        return fed.sparse_federated_averaging(
            task.gradient,
            task.client_optimizer,
            server_optimizer,
            config.updater(run),
            batches,
            growth=growth_of(run.cell),
            aggregation=aggregation,
            wire=wire,
            ledger=ledger,
            run=str(run),
        )


def _dense_clients(
    task: Task,
    server_optimizer: optax.GradientTransformation,
    updater: core.BaseUpdater,
    batches: Any,
    wire: fed.Wire,
    ledger: fed.Ledger,
) -> Any:
    """FedJAX's federated averaging under a sparse server: what clients train is dense, what they get is sparse.

    Masks change by the mean delta, which reaches every weight. As in JaxPruner's study, but the server's delta is not
    thrown away in rounds that change masks, and clients get sparse weights of straight-through algorithms, too.
    """
    passes, sparse_server = fed.Ledger(), fed.sparse_server_optimizer(server_optimizer, updater)
    updater = core.updater_of(sparse_server)  # the one that checkpoints find, which counts in rounds
    with fedjax.for_each_client_backend(fed.MeteredBackend(passes, wire)):
        averaging = fedjax.algorithms.fed_avg.federated_averaging(
            task.gradient, task.client_optimizer, sparse_server, batches
        )

    def init(params: Any) -> fed.SparseServerState:
        opt_state = averaging.init(params).opt_state
        return fed.SparseServerState(fed.sparse_broadcast(updater, params, opt_state), opt_state, 0)

    def apply(state: fed.SparseServerState, clients: Any) -> tuple[fed.SparseServerState, dict[Any, Any]]:
        before = fedjax.algorithms.fed_avg.ServerState(state.params, state.opt_state)
        after, diagnostics = averaging.apply(before, clients)
        for entry in passes:
            ledger.add(dataclasses.replace(entry, round=state.round))
        passes.truncate(0)
        norms = {client: float(found["delta_l2_norm"]) for client, found in diagnostics.items()}
        statuses = {
            client: {"status": DELIVERED if math.isfinite(norm) else f"its norm is {norm}"}
            for client, norm in norms.items()
        }
        return fed.SparseServerState(after.params, after.opt_state, state.round + 1), statuses

    return fedjax.FederatedAlgorithm(init, apply)


def first_state(config: FederatedSettings, run: Run, task: Task, algorithm: Any) -> fed.SparseServerState:
    """Where a run starts."""
    params = task.model.init(jax.random.PRNGKey(seed_for(run.seed, "model")))
    state = algorithm.init(params)
    if not config.rescale:
        return state
    return algorithm.init(core.rescale_to_fan_in(params, core.unpack_masks(params, state.opt_state.masks)))


def train(
    config: FederatedSettings, run: Run, task: Task, algorithm: Any, state: fed.SparseServerState
) -> Iterator[Step]:
    """Trains a run to its end and yields every step, from the first state on if that is where it starts.

    Args:
        config: settings of the study.
        run: what to train.
        task: what `prepare` made of the same settings.
        algorithm: what `averaging` made of them.
        state: where to go on; the rounds to come depend on nothing else.

    Raises:
        TrainingDivergedError: a loss is not finite, or the updates of all clients are not.
    """
    sampler = _sampler(config, task.train, seed_for(run.seed, "clients"))
    train_batches = _batches(dataset for _, dataset, _ in sampler.sample())
    if state.round == 0:
        yield Step(state, _evaluate(task, state, train_batches))
    sampler.set_round_num(state.round)
    while state.round < config.rounds:
        state, diagnostics = _round(algorithm, state, sampler.sample())
        if not any(client["status"] == DELIVERED for client in diagnostics.values()):
            reason = next(client["status"] for client in diagnostics.values())
            raise TrainingDivergedError(f"no update of round {state.round} could be used: {reason}")
        is_due = state.round % config.evaluate_every == 0 or state.round == config.rounds
        yield Step(state, _evaluate(task, state, train_batches) if is_due else None)


def _round(algorithm: Any, state: fed.SparseServerState, clients: Any) -> tuple[fed.SparseServerState, Any]:
    with warnings.catch_warnings():
        # Such a round ends the run, with a message of its own.
        warnings.filterwarnings("ignore", "round .* 0 valid updates", RuntimeWarning)
        return algorithm.apply(state, clients)


def _evaluate(task: Task, state: fed.SparseServerState, train_batches: list[Any]) -> Evaluation:
    test = fedjax.evaluate_model(task.model, state.params, task.test_batches)
    train_loss = float(fedjax.evaluate_model(task.model, state.params, train_batches)["loss"])
    sparsity = float(core.summarize_sparsity(state.params, only_total_sparsity=True)["_total_sparsity"])
    evaluation = Evaluation(state.round, float(test["accuracy"]), float(test["loss"]), train_loss, sparsity)
    if not (math.isfinite(evaluation.test_loss) and math.isfinite(train_loss)):
        raise TrainingDivergedError(
            f"the loss after round {state.round} is {evaluation.test_loss} on test data, {train_loss} on training data"
        )
    return evaluation


def _sampler(config: FederatedSettings, train: Any, seed: int) -> datasets.SeededClientSampler:
    return datasets.SeededClientSampler(train, config.clients_per_round, seed)


def _batches(client_datasets: Iterable[Any]) -> list[Any]:
    """All examples in padded batches of one shape, on the device."""
    return [
        jax.device_put(batch)
        for batch in fedjax.padded_batch_client_datasets(client_datasets, batch_size=_EVALUATION_BATCH)
    ]
