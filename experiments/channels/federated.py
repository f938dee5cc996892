"""Federated averaging on handwriting: masked, shrunk after the last change of masks, or narrow on all or some sides."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np
import optax

from experiments.channels.measured import shares_of_time, size_of, stored
from experiments.channels.settings import ChannelSettings
from experiments.channels.studies import GROUPS, NARROW, WIDTHS
from experiments.channels.supervised import last_change
from experiments.common.supervised.train import measured_sparsity
from experiments.fed_emnist.config import seed_for
from experiments.harness.cells import Cell
from experiments.harness.layers import masks_of
from experiments.harness.recorder import Recorder
from experiments.harness.study import Plan, Variants
from sparse_plugins import core, fed
from sparse_plugins.fed import datasets
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend

fedjax = fed.import_fedjax()

CHANNELS, UNITS, CLASSES = (16, 32), 128, 62
TIMED_ROUNDS, EVALUATION_BATCH = 9, 256
CLIENT_RATE, SERVER_RATE, SERVER_EPSILON = 10**-1.5, 10**-2.5, 1e-4  # those of the study of federated averaging


class Parts(NamedTuple):
    """An algorithm, where its bytes are noted, and the state that it starts from by seed."""

    algorithm: Any
    ledger: fed.Ledger
    first: Callable[[int], fed.SparseServerState]


@functools.cache
def network(part: float = 1.0) -> Any:
    """The model with a part of its channels: two convolutions in steps of two pixels, and two layers.

    Example:
        >>> shapes = jax.eval_shape(network(0.5).init, jax.random.key(0))
        >>> shapes["conv2_d_1"]["w"].shape, shapes["linear_1"]["w"].shape
        ((3, 3, 8, 16), (784, 64))
    """
    count = lambda channels: round(part * channels)  # noqa: E731

    def forward(batch: Any) -> jax.Array:
        x = batch["x"]
        for channels in CHANNELS:
            x = jax.nn.relu(hk.Conv2D(count(channels), 3, stride=2)(x))
        return hk.Linear(CLASSES)(jax.nn.relu(hk.Linear(count(UNITS))(hk.Flatten()(x))))

    return fedjax.create_model_from_haiku(
        transformed_forward_pass=hk.transform(forward),
        sample_batch={"x": np.zeros((1, 28, 28, 1), np.float32)},
        train_loss=lambda batch, logits: optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]),
        eval_metrics={"loss": fedjax.metrics.CrossEntropyLoss(), "accuracy": fedjax.metrics.Accuracy()},
    )


def plan(settings: ChannelSettings, cells: Variants) -> Plan:
    """The plan of the federated study."""
    writers, test = datasets.load("strokes", num_writers=settings.writers)
    tests = fedjax.padded_batch_client_datasets((data for _, data in test.clients()), batch_size=EVALUATION_BATCH)
    test_batches = [jax.device_put(batch) for batch in tests]
    clients_of = lambda number, seed: _drawn(settings, writers, number, seed)  # noqa: E731
    whole = jax.eval_shape(network().init, jax.random.PRNGKey(0))
    graph = functools.cache(lambda: _graph(clients_of(0, 0)))

    @functools.cache
    def dense() -> tuple[Parts, int]:
        """Dense training, and the bytes of a round of it."""
        made = _made(settings, core.NoPruning())
        made.algorithm.apply(made.first(0), clients_of(0, 0))
        total = made.ledger.total()
        return made, total.down + total.up

    def prepare(cell: Cell) -> Callable[[Recorder], None]:
        asked, turn, part, widths = settings.at(cell), None, 1.0, None
        updater: core.BaseUpdater = core.NoPruning()
        if cell.name == NARROW:
            part = 1 - asked.sparsity
        elif cell.name in WIDTHS:
            widths = fed.ClientWidths((1 - asked.sparsity,), cells[cell.name]["channels"])
        elif cell.name == GROUPS:
            structure = core.ChannelGroups(graph())
            updater = asked.updater({**cells[cell.name], "sparsity_type": structure, **_ROUNDS}, core.kernels_only)
            turn = last_change(updater) + 1
        elif not cell.is_dense:
            updater = asked.updater({**cells[cell.name], **_ROUNDS}, prunable)
        made = _made(settings, updater, part, widths)

        def run(recorder: Recorder) -> None:
            (algorithm, ledger, first), seed, small = made, recorder.run.seed, None
            ledger.truncate(0)
            state = first(seed)
            for number in range(settings.steps + 1):
                if number == turn:
                    algorithm, state, small = fed.shrunk(algorithm, state, graph())
                is_last = number == settings.steps
                if is_last or number % settings.evaluate_every == 0:
                    params = state.params if small is None else core.expand(small, state.params)
                    found = fedjax.evaluate_model(network(part), params, test_batches)
                    measured = _measured(algorithm, state, ledger, dense(), clients_of, whole) if is_last else {}
                    recorder.add(
                        number,
                        masks_of(state.params, state.opt_state) if turn is None else None,
                        loss=float(found["loss"]),
                        score=float(found["accuracy"]),
                        sparsity=measured_sparsity(state.params, state.opt_state),
                        is_last=int(is_last),
                        **measured,
                    )
                if not is_last:
                    state, _ = algorithm.apply(state, clients_of(number, seed))

        return run

    about = (
        f"Federated averaging on the strokes of {settings.writers} writers, {settings.steps} rounds of"
        f" {settings.clients_per_round} clients, each {settings.client_steps} steps with {settings.batch_size} images;"
        f" a network of two convolutions of {CHANNELS[0]} and {CHANNELS[1]} channels and a layer of {UNITS} units."
        f" Times are of a whole round, messages included."
    )
    return settings.plan_of(cells, about, prepare)


_ROUNDS = {"step_unit": "round"}


def prunable(path: tuple[str, ...], leaf: Any) -> bool:
    """All kernels but those of the first and of the last layer, which Haiku names before the one that it reads.

    Example:
        >>> shapes = jax.eval_shape(network().init, jax.random.key(0))
        >>> {name: layer["w"].shape for name, layer in shapes.items() if prunable((name, "w"), layer["w"])}
        {'conv2_d_1': (3, 3, 16, 32), 'linear_1': (1568, 128)}
    """
    return core.kernels_only(path, leaf) and path[0] not in ("conv2_d", "linear")


def _made(
    settings: ChannelSettings, updater: core.BaseUpdater, part: float = 1.0, widths: fed.ClientWidths | None = None
) -> Parts:
    ledger, model = fed.Ledger(), network(part)
    with fedjax.for_each_client_backend(ScanBackend()):
        algorithm = fed.sparse_federated_averaging(
            fedjax.model_grad(model),
            fedjax.optimizers.sgd(CLIENT_RATE),
            optax.adam(SERVER_RATE, eps=SERVER_EPSILON),
            updater,
            fedjax.ShuffleRepeatBatchHParams(
                batch_size=settings.batch_size, num_epochs=None, num_steps=settings.client_steps, seed=0
            ),
            client_widths=widths,
            ledger=ledger,
        )
    key_of = lambda seed: jax.random.PRNGKey(seed_for(seed, "model"))  # noqa: E731
    return Parts(algorithm, ledger, lambda seed: algorithm.init(model.init(key_of(seed))))


def _drawn(settings: ChannelSettings, writers: Any, number: int, seed: int) -> Sequence[Any]:
    """The clients of a round."""
    sampler = datasets.SeededClientSampler(writers, settings.clients_per_round, seed_for(seed, "clients"))
    sampler.set_round_num(number)
    return sampler.sample()


def _graph(clients: Sequence[Any]) -> core.ChannelGraph:
    """Groups of the channels of the whole network, by the function that clients train with."""
    _, data, key = clients[0]
    params = network().init(jax.random.PRNGKey(0))
    batch = next(iter(data.batch(batch_size=2)))
    return core.channel_graph(fedjax.model_grad(network()), params, batch, key)


def _measured(
    algorithm: Any,
    state: fed.SparseServerState,
    ledger: fed.Ledger,
    dense: tuple[Parts, int],
    clients_of: Callable[[int, int], Sequence[Any]],
    whole: Any,
) -> dict[str, float]:
    """What a round takes after training, beside one of dense training, and what the whole run has sent."""
    (made, each_round), total, rounds = dense, ledger.total(), ledger.by_round()
    last, of_dense = rounds[max(rounds)], each_round / 2
    clients = clients_of(0, 0)
    this, that = _round(algorithm, state, clients), _round(made.algorithm, made.first(0), clients)
    return {
        "up_share": last.up / of_dense,
        "down_share": last.down / of_dense,
        "run_share": (total.up + total.down) / (len(rounds) * each_round),
        **shares_of_time(this, that, TIMED_ROUNDS),
        **stored(state.params, state.opt_state, size_of(whole)),
    }


def _round(algorithm: Any, state: fed.SparseServerState, clients: Sequence[Any]) -> Callable[[], Any]:
    carried = [state]

    def run() -> Any:
        carried[0], _ = algorithm.apply(carried[0], clients)
        return carried[0].params

    return run
