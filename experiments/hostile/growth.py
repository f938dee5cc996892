"""`python -m experiments.hostile.growth`: what one client of ten grows, by sums of gradients and of ranks."""

from typing import Any

import jax
import numpy as np

from experiments.fed_emnist import train
from experiments.fed_emnist.config import seed_for
from experiments.harness.cells import Run
from experiments.hostile.federated import HostileSettings, config_of
from sparse_plugins import core, fed
from sparse_plugins.core.trees import leaf_names
from sparse_plugins.fed import datasets
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend
from sparse_plugins.fed.fedjax.client_training import mean_gradient
from sparse_plugins.fed.growth import ranked, strongest_pruned
from sparse_plugins.fed.mask_change import replaced_per_layer

fedjax = fed.import_fedjax()

Array = np.ndarray[Any, Any]


def shares(settings: HostileSettings) -> dict[str, tuple[float, float]]:
    """The share of a layer's grown weights that are the choice of the first client of a round, by sums and by ranks.

    The client names as many weights as are grown, at random among the pruned, with gradients a thousand times as large
    as the largest of the others. The round is the one after the first mask change, of the first seed.
    """
    config = config_of(settings)
    task, run = train.prepare(config), Run(next(config.cells()), config.seeds[0])
    with fedjax.for_each_client_backend(ScanBackend()):
        algorithm, probe = train.averaging(config, run, task, fed.Ledger()), mean_gradient(task.gradient)
    state = train.first_state(config, run, task, algorithm)
    sampler = datasets.SeededClientSampler(task.train, config.clients_per_round, seed_for(run.seed, "clients"))
    for _ in range(config.update_start + 1):
        state, _ = algorithm.apply(state, sampler.sample())
    masks = core.unpack_masks(state.params, state.opt_state.masks)
    counts = replaced_per_layer(config.updater(run), int(state.opt_state.count), masks)
    clients = sampler.sample()
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=config.batch_size, num_epochs=1)
    inputs = ((place, data.shuffle_repeat_batch(batches), {"rng": key}) for place, (_, data, key) in enumerate(clients))
    grads = [grad for _, grad in probe(state.params, inputs)]
    sent = [core.apply_masks(grad, strongest_pruned(grad, masks, counts)) for grad in grads]
    sent[0] = _shouted(sent[1:], masks, counts)
    sizes = [len(data) for _, data, _ in clients]
    by_sums = jax.tree.map(lambda *leaves: sum(size * leaf for size, leaf in zip(sizes, leaves, strict=True)), *sent)
    by_ranks = jax.tree.map(lambda *leaves: sum(leaves), *(ranked(grad, masks, counts) for grad in sent))
    columns = [jax.tree.leaves(strongest_pruned(total, masks, counts)) for total in (by_sums, by_ranks)]
    chosen = [np.asarray(leaf) != 0 for leaf in jax.tree.leaves(sent[0])]
    found = zip(leaf_names(state.params), chosen, *columns, strict=True)
    return {name: (_share(wanted, a), _share(wanted, b)) for name, wanted, a, b in found if wanted.any()}


def _share(wanted: Array, grown: Any) -> float:
    return float((wanted & (np.asarray(grown) != 0)).sum() / wanted.sum())


def _shouted(others: list[Any], masks: Any, counts: Any) -> Any:
    """A growth signal of random places and of sizes that nobody else has."""
    loud = 1000 * max(float(np.abs(leaf).max()) for grads in others for leaf in jax.tree.leaves(grads))
    rng = np.random.default_rng(0)
    wishes = jax.tree.map(lambda x: rng.uniform(loud, 2 * loud, x.shape).astype(np.float32), others[0])
    return core.apply_masks(wishes, strongest_pruned(wishes, masks, counts))


def main() -> None:
    """Prints a line for each layer."""
    print(f"{'layer':12}{'sums of gradients':>20}{'sums of ranks':>16}")
    for name, (sums, ranks) in shares(HostileSettings(name="growth", seeds=(0,))).items():
        print(f"{name:12}{sums:20.1%}{ranks:16.1%}")


if __name__ == "__main__":
    main()
