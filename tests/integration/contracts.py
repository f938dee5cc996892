"""What every library is held to, in real training steps: a table of checks, each of which takes a `Library`."""

import functools
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from sparse_plugins import core
from sparse_plugins.core.trees import leaf_names
from tests.contract.rows import assert_on_mask, assert_same
from tests.integration.libraries import IMAGES, LABELS, Library
from tests.quick import quick_jit

SPARSITY = 0.75
# Masks change at steps 1, 3 and 5.
START, END, STEPS = 1, 5, 7
GROWING = core.PolynomialSchedule(update_freq=2, update_start_step=START, update_end_step=END)
EXCHANGE = core.PeriodicSchedule(update_freq=2, update_start_step=START, update_end_step=END)
HALF_WAY = 4


class Moment(NamedTuple):
    """A training run before a step: parameters, other state, optimizer state; and that step's gradients."""

    params: Any
    rest: Any
    state: Any
    grads: Any


def make_updater(algorithm: type[core.BaseUpdater], **fields: Any) -> core.BaseUpdater:
    kernels = functools.partial(core.uniform, sparsity=SPARSITY, filter_fn=core.kernels_only)
    return algorithm(sparsity_distribution_fn=kernels, **fields)


def loss_of(library: Library, params: Any, rest: Any) -> tuple[jax.Array, Any]:
    logits, rest = library.apply(params, rest, IMAGES)
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), rest


@functools.cache
def gradients_of(library: Library) -> Callable:
    """(params, rest) -> (loss, new rest), gradients; compiled once for all runs of a library."""
    return quick_jit(jax.value_and_grad(functools.partial(loss_of, library), has_aux=True))


class Training:
    """A loop that knows nothing of sparsity; it hands over what any optimizer asks for."""

    def __init__(self, library: Library, tx: optax.GradientTransformation) -> None:
        self.library, self.tx = library, tx

        def step(before: Moment, value: jax.Array) -> tuple[Any, Any]:
            params, rest, state, grads = before
            objective = lambda params: loss_of(library, params, rest)[0]  # noqa: E731
            extra = {"value": value, "grad": grads, "value_fn": objective, "obj_fn": objective}
            updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
            return optax.apply_updates(params, updates), state

        self.step = quick_jit(step)

    def start(self) -> Moment:
        # Committed to the device, as what is restored will be: one program for both.
        params, rest = self.library.params, self.library.rest
        return jax.device_put(Moment(params, rest, self.tx.init(params), None), jax.devices()[0])

    def advance(self, moment: Moment, steps: int) -> list[Moment]:
        """The moments before each of the steps, and the one after the last."""
        params, rest, state, _ = moment
        moments = []
        for _ in range(steps):
            (value, new_rest), grads = gradients_of(self.library)(params, rest)
            moments.append(Moment(params, rest, state, grads))
            params, state = self.step(moments[-1], value)
            rest = new_rest
        return [*moments, Moment(params, rest, state, None)]


@functools.cache
def run(library: Library, algorithm: str) -> tuple[Training, list[Moment]]:
    updater = {
        "magnitude": lambda: make_updater(core.MagnitudePruning, scheduler=GROWING),
        "rigl": lambda: make_updater(core.RigL, scheduler=EXCHANGE),
        "ste 2:4": lambda: make_updater(core.SteMagnitudePruning, sparsity_type=core.NByM(2, 4, axis=library.inputs)),
        "dense control": lambda: core.NoPruning(),
    }
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
    tx = adam if algorithm == "dense" else updater[algorithm]().wrap_optax(adam)
    if algorithm in ("rigl", "ste 2:4"):  # their first masks would be many programs, one for each operation
        tx = tx._replace(init=quick_jit(tx.init))
    training = Training(library, tx)
    return training, training.advance(training.start(), STEPS)


def by_name(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(tree)
    comparable = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return {name: np.asarray(comparable(leaf)) for name, leaf in zip(leaf_names(tree), leaves, strict=True)}


def masks_of(moment: Moment) -> dict[str, np.ndarray]:
    return by_name(core.unpack_masks(moment.params, core.find_sparse_state(moment.state).masks))


def moments_of(moment: Moment, name: str) -> dict[str, np.ndarray]:
    """Adam's mu or nu."""
    return by_name(optax.tree.get(moment.state, name))


def kernels_are_found_by_name_and_nothing_else(library: Library) -> None:
    _, moments = run(library, "magnitude")
    assert {name: mask.shape for name, mask in masks_of(moments[-1]).items()} == library.kernels


def magnitude_keeps_the_largest_as_the_polynomial_says(library: Library) -> None:
    _, moments = run(library, "magnitude")
    kept = {name: np.ones(shape, bool) for name, shape in library.kernels.items()}
    for step, (before, after) in enumerate(itertools.pairwise(moments)):
        if START <= step <= END and (step - START) % 2 == 0:
            sparsity = SPARSITY * (1 - (1 - min((step + 1 - START) / (END - START), 1)) ** 3)
            for name in kept:
                size = np.where(kept[name], np.abs(by_name(before.params)[name]), -1).ravel()
                best = np.argsort(-size, kind="stable")[: round((1 - sparsity) * size.size)]
                kept[name] = np.isin(np.arange(size.size), best).reshape(kept[name].shape)
        assert_same(masks_of(after), kept)
        assert_on_mask(after.params, after.state)


def rigl_exchanges_weights_and_restarts_their_moments(library: Library) -> None:
    _, moments = run(library, "rigl")
    grown = 0
    for before, after in itertools.pairwise(moments):
        assert_on_mask(after.params, after.state)
        old, new, grads = masks_of(before), masks_of(after), by_name(before.grads)
        for name in library.kernels:
            assert new[name].sum() == round((1 - SPARSITY) * new[name].size)
            back, out = (new[name] > old[name]), (new[name] == 0) & (old[name] == 0)
            grown += back.sum()
            norm = min(1.0, 1.0 / np.sqrt(sum((g**2).sum() for g in sparse_gradients(grads, new).values())))
            np.testing.assert_allclose(moments_of(after, "mu")[name][back], 0.1 * norm * grads[name][back], rtol=1e-4)
            np.testing.assert_allclose(
                moments_of(after, "nu")[name][back], 0.001 * (norm * grads[name][back]) ** 2, rtol=1e-4
            )
            assert not back.any() or np.abs(grads[name][back]).min() >= np.abs(grads[name][out]).max()
    assert grown > 0


def sparse_gradients(grads: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: grad * masks.get(name, 1) for name, grad in grads.items()}


def straight_through_parameters_are_the_view_of_dense_weights_that_learn(library: Library) -> None:
    _, moments = run(library, "ste 2:4")
    for before, after in itertools.pairwise(moments):
        assert_on_mask(after.params, after.state)
        assert_same(after.params, make_updater(core.SteMagnitudePruning).pre_forward_update(after.params, after.state))
        masks, params = masks_of(after), by_name(after.params)
        old, dense = (by_name(core.find_sparse_state(moment.state).dense_params) for moment in (before, after))
        assert set(dense) == set(library.kernels)
        for name in dense:
            np.testing.assert_array_equal(params[name], np.where(masks[name], dense[name], 0))
            assert (dense[name] != old[name])[masks[name] == 0].mean() > 0.5


def n_of_m_lies_along_the_inputs(library: Library) -> None:
    for moment in run(library, "ste 2:4")[1]:
        for name, mask in masks_of(moment).items():
            groups = np.moveaxis(mask, library.inputs, -1).reshape(-1, 4)
            np.testing.assert_array_equal(groups.sum(1), 2, err_msg=name)


def axes_of_inputs_and_outputs_are_what_the_table_says(library: Library) -> None:
    """A channel of the images is unseen if its slice of the first kernel is 0, and a logit constant if its own is."""
    params, (first, last) = by_name(library.params), library.kernels
    without_input, without_output = params | {first: params[first].copy()}, params | {last: params[last].copy()}
    np.moveaxis(without_input[first], library.inputs, 0)[2] = 0
    np.moveaxis(without_output[last], library.outputs, 0)[4] = 0
    rebuilt = lambda leaves: jax.tree.unflatten(jax.tree.structure(library.params), leaves.values())  # noqa: E731
    forward = quick_jit(lambda params, images: library.apply(params, library.rest, images)[0])
    other = IMAGES.copy()
    other[..., 2] += 1
    seen = forward(library.params, IMAGES)
    assert (seen != forward(library.params, other)).any()
    assert_same(*(forward(rebuilt(without_input), images) for images in (IMAGES, other)))
    constant = [len(np.unique(logit)) == 1 for logit in np.asarray(forward(rebuilt(without_output), IMAGES)).T]
    assert constant == [output == 4 for output in range(6)]


def without_sparsity_it_is_the_optimizer_bit_for_bit(library: Library) -> None:
    for dense, control in zip(run(library, "dense")[1], run(library, "dense control")[1], strict=True):
        assert_same(by_name(dense.params), by_name(control.params))
        assert_same(by_name(dense.rest), by_name(control.rest))


def other_state_goes_on_as_without_sparsity(library: Library) -> None:
    """Statistics follow the sparse model; keys and counters are those of the dense run."""
    for algorithm in ("magnitude", "rigl", "ste 2:4"):
        for dense, sparse in zip(run(library, "dense")[1], run(library, algorithm)[1], strict=True):
            assert jax.tree.structure(dense.rest) == jax.tree.structure(sparse.rest)
            dense, sparse = by_name(dense.rest), by_name(sparse.rest)
            exact = {name for name, leaf in dense.items() if not np.issubdtype(leaf.dtype, np.floating)}
            assert_same({name: dense[name] for name in exact}, {name: sparse[name] for name in exact})
        assert all(np.isfinite(leaf).all() for leaf in sparse.values())
        assert any((dense[name] != sparse[name]).any() for name in set(dense) - exact)


def summaries_and_the_plan_name_the_kernels(library: Library) -> None:
    end = run(library, "magnitude")[1][-1]
    masks = core.find_sparse_state(end.state).masks
    summary = core.summarize_sparsity(end.params, masks=masks)
    assert {name: float(summary[name]) for name in library.kernels} == dict.fromkeys(library.kernels, SPARSITY)
    sizes = [np.prod(shape) for shape in library.kernels.values()]
    assert (float(summary["_nparams"]), float(summary["_total_sparsity"])) == (sum(sizes), SPARSITY)
    assert float(core.summarize_intersection(masks, masks)["_total_intersection"]) == 1
    plan = core.describe_plan(make_updater(core.MagnitudePruning, scheduler=GROWING), library.params).splitlines()
    for name, size in zip(library.kernels, sizes, strict=True):
        (line,) = [line for line in plan if line.startswith(name)]
        assert line.endswith(f"{round((1 - SPARSITY) * size)} of {size}")


def exports_come_back_bit_for_bit(library: Library) -> None:
    end = run(library, "magnitude")[1][-1]
    masks = core.find_sparse_state(end.state).masks
    assert_same(core.export.to_dense(core.export.to_bcoo(end.params, masks)), end.params)
    with tempfile.TemporaryDirectory() as folder:
        core.export.save_sparse(Path(folder) / "model.npz", end.params, masks)
        params, again = core.export.load_sparse(Path(folder) / "model.npz", library.params)
    assert_same(params, end.params)
    assert_same(core.unpack_masks(params, again), core.unpack_masks(params, masks))


def a_run_resumes_bit_for_bit_from_orbax(library: Library) -> None:
    for algorithm in ("rigl", "ste 2:4"):
        training, moments = run(library, algorithm)
        half = moments[HALF_WAY]._replace(grads=None)
        with tempfile.TemporaryDirectory() as folder:
            with ocp.StandardCheckpointer() as checkpoints:
                checkpoints.save(Path(folder) / "half", half)
            with ocp.StandardCheckpointer() as checkpoints:
                restored = checkpoints.restore(Path(folder) / "half", jax.eval_shape(lambda half=half: half))
        core.check_state(restored.params, restored.state)
        for once, again in zip(moments[HALF_WAY:], training.advance(restored, STEPS - HALF_WAY), strict=True):
            assert_same(by_name(once), by_name(again))


CONTRACTS: dict[str, Callable[[Library], None]] = {
    check.__name__: check
    for check in (
        kernels_are_found_by_name_and_nothing_else,
        magnitude_keeps_the_largest_as_the_polynomial_says,
        rigl_exchanges_weights_and_restarts_their_moments,
        straight_through_parameters_are_the_view_of_dense_weights_that_learn,
        n_of_m_lies_along_the_inputs,
        axes_of_inputs_and_outputs_are_what_the_table_says,
        without_sparsity_it_is_the_optimizer_bit_for_bit,
        other_state_goes_on_as_without_sparsity,
        summaries_and_the_plan_name_the_kernels,
        exports_come_back_bit_for_bit,
        a_run_resumes_bit_for_bit_from_orbax,
    )
}
