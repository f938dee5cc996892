"""What Scenic's trainers are made of, with its signatures: train state, steps under a replica axis, checkpoints."""

import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.vision.networks import ConvNet, dense_optimizer


@flax.struct.dataclass
class TrainState:
    tx: optax.GradientTransformation | None = flax.struct.field(default=None, pytree_node=False)
    opt_state: Any = None
    params: Any = flax.struct.field(default_factory=dict)
    global_step: Any = 0
    model_state: Any = flax.struct.field(default_factory=dict)
    rng: Any = None
    metadata: dict[str, Any] | None = None


def train_step(
    train_state: TrainState,
    batch: Any,
    *,
    flax_model: Any,
    loss_fn: Any,
    lr_fn: Any,
    metrics_fn: Any,
    config: Any,
    debug: bool | None = False,
) -> tuple[TrainState, Any, Any]:
    new_rng, rng = jax.random.split(train_state.rng)
    rng = jax.random.fold_in(rng, jax.lax.axis_index("batch"))

    def training_loss(params: Any) -> Any:
        variables, rngs = {"params": params, **train_state.model_state}, {"dropout": rng}
        logits, model_state = flax_model.apply(
            variables, batch["inputs"], train=True, mutable=["batch_stats"], rngs=rngs
        )
        return loss_fn(logits, batch, params), (model_state, logits)

    grads, (model_state, logits) = jax.grad(training_loss, has_aux=True)(train_state.params)
    grads = jax.lax.pmean(grads, axis_name="batch")
    updates, opt_state = train_state.tx.update(grads, train_state.opt_state, train_state.params)
    logs = {"learning_rate": lr_fn(train_state.global_step)}
    train_state = train_state.replace(
        global_step=train_state.global_step + 1,
        opt_state=opt_state,
        params=optax.apply_updates(train_state.params, updates),
        model_state=model_state,
        rng=new_rng,
    )
    return train_state, metrics_fn(logits, batch), logs


def eval_step(
    train_state: TrainState, batch: Any, *, flax_model: Any, metrics_fn: Any, debug: bool | None = False
) -> tuple[Any, Any]:
    variables = {"params": train_state.params, **train_state.model_state}
    logits = flax_model.apply(variables, batch["inputs"], train=False, mutable=False)
    return metrics_fn(logits, batch), logits


def save_checkpoint(workdir: str, train_state: TrainState) -> None:
    (Path(workdir) / "checkpoint").write_bytes(flax.serialization.to_bytes(jax.device_get(train_state)))


def restore_checkpoint(checkpoint_path: str, train_state: TrainState) -> tuple[TrainState, int]:
    if (path := Path(checkpoint_path) / "checkpoint").exists():
        train_state = flax.serialization.from_bytes(train_state, path.read_bytes())
    return train_state, int(train_state.global_step)


train_utils = types.SimpleNamespace(
    TrainState=TrainState, save_checkpoint=save_checkpoint, restore_checkpoint=restore_checkpoint
)


def cross_entropy(logits: jax.Array, batch: Any, params: Any = None) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


STEP = {"flax_model": ConvNet(), "loss_fn": cross_entropy, "lr_fn": lambda step: 0.1, "metrics_fn": cross_entropy}
EVAL = {"flax_model": ConvNet(), "metrics_fn": cross_entropy}


def compiled(step: Callable, replicas: int) -> Callable:
    """As Scenic does it; several replicas on the one device of the suite are a `vmap` over the same axis."""
    if replicas == 1:
        return jax.pmap(step, axis_name="batch", donate_argnums=0 if step.func is train_step else ())
    return jax.jit(jax.vmap(step, axis_name="batch"))


def batches(replicas: int = 1) -> Iterator[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    while True:
        images = generator.normal(size=(replicas, 2, 6, 6, 4)).astype(np.float32)
        yield {"inputs": images, "label": generator.integers(0, 3, (replicas, 2))}


def train(
    *, rng: jax.Array, config: Any, model_cls: Callable, dataset: Any, workdir: str, writer: list
) -> tuple[TrainState, Any, Any]:
    """Writes the replicated state before each step and after the last."""
    model_state = dict(model_cls())
    params, tx = model_state.pop("params"), dense_optimizer()
    state = train_utils.TrainState(
        global_step=0, opt_state=tx.init(params), tx=tx, params=params, model_state=model_state, rng=rng, metadata={}
    )
    state, start_step = train_utils.restore_checkpoint(workdir, state)
    state = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * config.replicas), state)
    step = compiled(functools.partial(train_step, config=config, **STEP), config.replicas)
    evaluate = compiled(functools.partial(eval_step, **EVAL), config.replicas)
    writer.append(jax.tree.map(np.asarray, state))
    _, logits = evaluate(state, next(batches(config.replicas)))
    for _ in range(start_step, config.num_training_steps):
        state, *_ = step(state, next(dataset))
        writer.append(jax.tree.map(np.asarray, state))
    return state, None, {"logits": logits}
