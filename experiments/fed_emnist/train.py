"""FedJAX's own federated averaging with a sparse server optimizer, evaluated on the parameters in use."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import optax

from experiments.fed_emnist.config import Run, StudyConfig
from sparse_plugins import core, fed
from sparse_plugins.fed import datasets

fedjax = fed.import_fedjax()

_EVALUATION_BATCH = 256


class Task(NamedTuple):
    """What all runs of a study share, so that data is read and functions are compiled once."""

    model: Any
    gradient: Any
    client_optimizer: Any
    train: Any
    test_batches: list[Any]


class Evaluation(NamedTuple):
    """The model that the clients get after `round` rounds; `record.Row` says what the numbers mean."""

    round: int
    test_accuracy: float
    test_loss: float
    train_loss: float
    measured_sparsity: float


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def prepare(config: StudyConfig) -> Task:
    """Loads the data, builds the model, and checks that all runs can start on them.

    Raises:
        DatasetUnavailableError: the data can't be had.
        ValueError: more clients per round than there are, or a structure that does not fit a layer.
    """
    train, test = datasets.load(config.dataset, only_digits=config.only_digits, cache_dir=config.cache_dir)
    build = {"dense": fedjax.models.emnist.create_dense_model, "conv": fedjax.models.emnist.create_conv_model}
    model = build[config.model](only_digits=config.only_digits or config.dataset == "digits")
    _sampler(config, train, seed=0)
    params = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    for run in config.runs():
        jax.eval_shape(config.updater(run).init_state, params)
    return Task(
        model=model,
        gradient=fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(config.client_learning_rate),
        train=train,
        test_batches=_batches(dataset for _, dataset in test.clients()),
    )


def train(config: StudyConfig, run: Run, task: Task, rounds: Iterable[int]) -> Iterator[Evaluation]:
    """Trains one run and yields its evaluations, the first before training.

    Args:
        config: settings of the study.
        run: what to train.
        task: what `prepare` made of the same settings.
        rounds: 1 to `config.rounds`, for example inside a progress bar.

    Raises:
        TrainingDivergedError: a loss is not finite.
    """
    updater = config.updater(run)
    learning_rate: Any = config.server_learning_rate
    if config.server_schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(learning_rate, config.rounds)
    adam = optax.adam(learning_rate, eps=config.server_epsilon)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        task.gradient,
        task.client_optimizer,
        fed.sparse_server_optimizer(adam, updater),
        fedjax.ShuffleRepeatBatchHParams(batch_size=config.batch_size, num_epochs=config.local_epochs),
    )
    sampler = _sampler(config, task.train, run.seed_for("clients"))
    train_batches = _batches(dataset for _, dataset, _ in sampler.sample())
    sampler.set_round_num(0)

    state = algorithm.init(task.model.init(jax.random.PRNGKey(run.seed_for("model"))))
    # Algorithms that are sparse from the start broadcast a sparse model in the first round already.
    state = state.replace(params=updater.pre_forward_update(state.params, state.opt_state))

    def evaluate(round_number: int) -> Evaluation:
        in_use = updater.pre_forward_update(state.params, state.opt_state)
        test = fedjax.evaluate_model(task.model, in_use, task.test_batches)
        train_loss = float(fedjax.evaluate_model(task.model, in_use, train_batches)["loss"])
        sparsity = float(core.summarize_sparsity(in_use, only_total_sparsity=True)["_total_sparsity"])
        evaluation = Evaluation(round_number, float(test["accuracy"]), float(test["loss"]), train_loss, sparsity)
        if not (math.isfinite(evaluation.test_loss) and math.isfinite(train_loss)):
            raise TrainingDivergedError(
                f"the loss after round {round_number} is {evaluation.test_loss} on test data,"
                f" {train_loss} on training data"
            )
        return evaluation

    yield evaluate(0)
    for round_number in rounds:
        state, _ = algorithm.apply(state, sampler.sample())
        if round_number % config.evaluate_every == 0 or round_number == config.rounds:
            yield evaluate(round_number)


def _sampler(config: StudyConfig, train: Any, seed: int) -> datasets.SeededClientSampler:
    return datasets.SeededClientSampler(train, config.clients_per_round, seed)


def _batches(client_datasets: Iterable[Any]) -> list[Any]:
    """All examples in padded batches of one shape, on the device."""
    return [
        jax.device_put(batch)
        for batch in fedjax.padded_batch_client_datasets(client_datasets, batch_size=_EVALUATION_BATCH)
    ]
