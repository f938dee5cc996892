"""Every library through the contracts, in real training steps, and optax's contrib optimizers with them."""

import itertools

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from sparse_plugins import core
from sparse_plugins.core.trees import leaf_names
from tests.contract.optimizer_rows import OPTIMIZERS
from tests.contract.rows import assert_on_mask, assert_same
from tests.integration.contracts import CONTRACTS, GROWING, Training, make_updater, masks_of, run
from tests.integration.libraries import LIBRARIES, equinox_, equinox_network

# Those of optax.contrib that look at more than one weight: distances, norms, matrices, losses, two steps at once.
# The contract suite has them all, on a toy problem.
CONTRIB = [
    *("cocob", "dadapt_adamw", "dog", "dowg", "mechanize", "momo_adam", "muon", "prodigy", "reduce_on_plateau"),
    *("sam with normalize", "schedule_free_adamw", "sophia with hutchinson_estimator_diag_hessian"),
]
PAIRS = list(zip(CONTRIB, itertools.cycle(LIBRARIES), strict=False))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_library_keeps_the_contract(library: str, contract: str) -> None:
    CONTRACTS[contract](LIBRARIES[library]())


@pytest.mark.parametrize(("optimizer", "library"), PAIRS)
def test_contrib_optimizers_train_real_models_on_the_mask(optimizer: str, library: str) -> None:
    model = LIBRARIES[library]()
    updater = make_updater(core.MagnitudePruning, scheduler=GROWING, sparsity_type=core.NByM(2, 4, axis=model.inputs))
    training = Training(model, updater.wrap_optax(OPTIMIZERS[optimizer]()))
    moments = training.advance(training.start(), 3)
    for moment in moments[2:]:
        assert_on_mask(moment.params, moment.state)
        assert [int(mask.sum()) for mask in masks_of(moment).values()] == [288 // 2, 48 // 2]
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(moment.params))
    assert training.step._cache_size() == 1
    end = moments[-1]
    assert not all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (end.params, model.params)), strict=True))
    if optimizer == "schedule_free_adamw":  # averages of weights as they were before some were pruned
        averages = optax.contrib.schedule_free_eval_params(end.state.inner_state, end.params)
        assert_on_mask(updater.pre_forward_update(averages, end.state), end.state)


def test_whole_equinox_models_are_made_sparse_and_keep_their_other_leaves() -> None:
    network, _ = equinox_network()
    state = run(equinox_(), "ste 2:4")[1][0].state
    sparse = make_updater(core.SteMagnitudePruning).pre_forward_update(network, state)
    assert_on_mask(equinox.filter(sparse, equinox.is_inexact_array), state)
    assert int(np.count_nonzero(sparse.head.weight)) == 48 // 2
    for name in ("activation", "version", "key", "name"):
        assert getattr(sparse, name) is getattr(network, name)
    assert_same(*(equinox.filter(model.norm, equinox.is_array) for model in (sparse, network)))


RECURRENT = {
    "Flax": lambda key, x: linen.LSTMCell(4).init(key, linen.LSTMCell(4).initialize_carry(key, x.shape), x),
    "Haiku": lambda key, x: haiku.transform(lambda x: haiku.GRU(4)(x, haiku.GRU(4).initial_state(None))).init(key, x),
    "Equinox": lambda key, x: equinox.filter(equinox.nn.GRUCell(3, 4, key=key), equinox.is_inexact_array),
}


@pytest.mark.parametrize("library", RECURRENT)
def test_kernels_of_recurrent_cells_are_found(library: str) -> None:
    params = jax.eval_shape(RECURRENT[library], jax.random.key(0), jnp.ones(3))
    plan = core.uniform(params, 0.5, filter_fn=core.kernels_only)
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    assert len(jax.tree.leaves(plan)) == len(matrices) > 0


@pytest.mark.parametrize(("library", "also"), [("Haiku", "norm/scale"), ("Equinox", "conv/bias")])
def test_the_default_filter_goes_by_axes_alone(library: str, also: str) -> None:
    """Why the pages of these libraries say kernels_only."""
    params = LIBRARIES[library]().params
    assert {also, *LIBRARIES[library]().kernels} <= set(leaf_names(core.uniform(params, 0.5)))
