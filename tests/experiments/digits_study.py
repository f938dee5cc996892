"""A study in a file of its own: magnitude pruning against dense training on scikit-learn's digits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from experiments.common.supervised.train import measured_sparsity
from experiments.harness import variants
from experiments.harness.command import main
from experiments.harness.layers import masks_of
from experiments.harness.layout import Layout, Measure, Record, last
from experiments.harness.recorder import Recorder
from experiments.harness.settings import flag
from experiments.harness.study import Plan, Study
from sparse_plugins import core


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSettings(variants.VariantSettings):
    steps: int = flag("optimizer steps of each run", int, default=60)


def layout(record: Record) -> Layout:
    return variants.layout({"title": "Digits", **record}, Measure("test accuracy, %", last("score"), 100))


def task(settings: DigitsSettings) -> Plan:
    images, labels = load_digits(return_X_y=True)
    images, is_test = images.astype(np.float32) / 16, np.arange(len(labels)) % 4 == 0
    loss = lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(x @ params["w"], y).mean()  # noqa: E731
    cells = settings.chosen({"dense": {"algorithm": "no_prune"}, "magnitude": {"algorithm": "magnitude"}})

    def prepare(name: str) -> Callable[[Recorder], None]:
        schedule = {"update_start_step": 1, "update_end_step": settings.steps // 2, "update_freq": 1}
        updater = core.create_updater_from_config(**cells[name], **schedule, sparsity=settings.sparsity)
        tx = updater.wrap_optax(optax.adam(0.05))

        @jax.jit
        def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
            updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        def run(recorder: Recorder) -> None:
            draw = np.random.default_rng(recorder.run.seed)
            params = {"w": jnp.asarray(0.1 * draw.normal(size=(64, 10)), jnp.float32)}
            state = tx.init(params)
            for number in range(1, settings.steps + 1):
                rows = draw.choice(np.flatnonzero(~is_test), 64)
                params, state = step(params, state, images[rows], labels[rows])
                if number % (settings.steps // 3) == 0:
                    right = np.argmax(images[is_test] @ np.asarray(params["w"]), axis=1) == labels[is_test]
                    found = {"score": float(right.mean()), "sparsity": measured_sparsity(params, state)}
                    recorder.add(number, masks_of(params, state), is_last=int(number == settings.steps), **found)

        return run

    return variants.plan_of(settings, cells, "A linear classifier.", prepare)


STUDY = Study("digits", "Magnitude pruning on digits.", layout, ("jax", "optax", "scikit-learn"))
run = functools.partial(main, STUDY, DigitsSettings, task)
