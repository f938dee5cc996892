"""What clients compute: training inside a mask, and gradients at the parameters of the broadcast."""

from collections.abc import Callable
from typing import Any

import fedjax
import jax
import jax.numpy as jnp

from sparse_plugins import core
from sparse_plugins.fed.aggregation import wide_zeros
from sparse_plugins.wire.trees import PyTree

__all__ = ["GradFn", "masked_training", "mean_gradient"]

GradFn = Callable[[Any, Any, Any], Any]


def masked_training(
    grad_fn: GradFn, optimizer: fedjax.Optimizer, backend: fedjax.ForEachClientBackend | None = None
) -> Callable[..., Any]:
    """A `for_each_client` function that trains each client inside a mask.

    Its shared input is `{"params", "masks"}`; a client's input is `{"rng"}`, and `"masks"` if they are its own. Its
    output is `{"delta", "masks"}`: parameters of the broadcast minus trained ones, exactly 0 outside the client's mask,
    and that mask.

    Args:
        grad_fn: From parameters, batch and key to gradients.
        optimizer: What trains; it sees masked gradients.
        backend: What runs the clients; None is what FedJAX has chosen now.
    """

    def client_init(shared: Any, client: Any) -> Any:
        masks = client.get("masks", shared["masks"])
        params = core.apply_masks(shared["params"], masks)
        return {"params": params, "opt_state": optimizer.init(params), "masks": masks, "rng": client["rng"]}

    def client_step(state: Any, batch: Any) -> Any:
        rng, use_rng = jax.random.split(state["rng"])
        grads = core.apply_masks(grad_fn(state["params"], batch, use_rng), state["masks"])
        opt_state, params = optimizer.apply(grads, state["opt_state"], state["params"])
        params = core.apply_masks(params, state["masks"])  # some optimizers move weights without a gradient
        return {**state, "params": params, "opt_state": opt_state, "rng": rng}

    def client_final(shared: Any, state: Any) -> Any:
        delta = jax.tree.map(jnp.subtract, shared["params"], state["params"])
        return {"delta": core.apply_masks(delta, state["masks"]), "masks": state["masks"]}

    return _for_each_client(backend, client_init, client_step, client_final)


def mean_gradient(grad_fn: GradFn, backend: fedjax.ForEachClientBackend | None = None) -> Callable[..., Any]:
    """A `for_each_client` function that averages each client's gradients without moving the parameters.

    Its shared input are the parameters, a client's input is `{"rng"}`, its output a tree of the parameters' shapes: the
    mean over the client's examples.

    Args:
        grad_fn: From parameters, batch and key to gradients that are means over the batch.
        backend: As for `masked_training`.
    """

    def client_init(params: PyTree, client: Any) -> Any:
        return {"params": params, "sum": wide_zeros(params), "examples": jnp.zeros(()), "rng": client["rng"]}

    def client_step(state: Any, batch: Any) -> Any:
        rng, use_rng = jax.random.split(state["rng"])
        grads = grad_fn(state["params"], batch, use_rng)
        examples = len(jax.tree.leaves(batch)[0])
        add = lambda s, g: s + g.astype(s.dtype) * jnp.asarray(examples, s.dtype)  # noqa: E731
        total = jax.tree.map(add, state["sum"], grads)
        return {**state, "sum": total, "examples": state["examples"] + examples, "rng": rng}

    def client_final(params: PyTree, state: Any) -> Any:
        examples = jnp.maximum(state["examples"], 1)
        # Also where a parameter is an integer: a message has the model's dtypes.
        return jax.tree.map(lambda p, s: (s / examples.astype(s.dtype)).astype(p.dtype), params, state["sum"])

    return _for_each_client(backend, client_init, client_step, client_final)


def _for_each_client(backend: fedjax.ForEachClientBackend | None, *parts: Callable[..., Any]) -> Callable[..., Any]:
    with fedjax.for_each_client_backend(backend or fedjax.get_for_each_client_backend()):
        return fedjax.for_each_client(*parts)
