"""Small agents of the shape of DQN Zoo's and Acme's: the same attributes, methods and calls of the optimizer."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tests.quick import quick_jit
from tests.rl_haiku.toy_learner import BATCHES, Transitions, greedy, init, loss


class ZooAgent:
    """Learns in `step`, from transitions that are handed to it."""

    def __init__(
        self,
        sample_network_input: Any,
        optimizer: optax.GradientTransformation,
        target_network_update_period: int,
        rng_key: Any,
    ) -> None:
        self._target_network_update_period = target_network_update_period
        self._rng_key, network_rng_key = jax.random.split(rng_key)
        self._online_params = init(network_rng_key, sample_network_input)
        self._target_params = self._online_params
        self._opt_state = optimizer.init(self._online_params)
        self._frame_t = -1

        def update(rng_key, opt_state, online_params, target_params, transitions):
            rng_key, update_key = jax.random.split(rng_key)
            d_loss_d_params = jax.grad(loss, has_aux=True)(online_params, target_params, update_key, transitions)[0]
            updates, new_opt_state = optimizer.update(d_loss_d_params, opt_state)
            return rng_key, new_opt_state, optax.apply_updates(online_params, updates)

        self._update = quick_jit(update)

    def step(self, transitions: Transitions) -> Any:
        self._frame_t += 1
        self._learn(transitions)
        if self._frame_t % self._target_network_update_period == 0:
            self._target_params = self._online_params
        return greedy(self._online_params, self._rng_key, transitions.observation)

    def _learn(self, transitions: Transitions) -> None:
        self._rng_key, self._opt_state, self._online_params = self._update(
            self._rng_key, self._opt_state, self._online_params, self._target_params, transitions
        )

    def get_state(self) -> dict[str, Any]:
        return {
            "rng_key": self._rng_key,
            "frame_t": self._frame_t,
            "opt_state": self._opt_state,
            "online_params": self._online_params,
            "target_params": self._target_params,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._rng_key = state["rng_key"]
        self._frame_t = state["frame_t"]
        self._opt_state = jax.device_put(state["opt_state"])
        self._online_params = jax.device_put(state["online_params"])
        self._target_params = jax.device_put(state["target_params"])


class TrainingState(NamedTuple):
    params: Any
    target_params: Any
    opt_state: Any
    steps: Any
    rng_key: Any


def on_all_devices(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


def of_first_device(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_get(leaf[0]), tree)


class AcmeLearner:
    """Learns in `step` by a function that is mapped over devices, here one: by `vmap`, which compiles faster."""

    over_devices = staticmethod(lambda step: quick_jit(jax.vmap(step, axis_name="data")))

    def __init__(
        self,
        loss_fn: Callable,
        optimizer: optax.GradientTransformation,
        data_iterator: Iterator[Transitions],
        target_update_period: int,
        random_key: Any,
    ) -> None:
        def sgd_step(state: TrainingState, batch: Transitions) -> tuple[TrainingState, Any]:
            next_rng_key, rng_key = jax.random.split(state.rng_key)
            grads, extra = jax.grad(loss_fn, has_aux=True)(state.params, state.target_params, rng_key, batch)
            grads = jax.lax.pmean(grads, axis_name="data")
            updates, new_opt_state = optimizer.update(grads, state.opt_state)
            new_params = optax.apply_updates(state.params, updates)
            steps = state.steps + 1
            target_params = optax.periodic_update(new_params, state.target_params, steps, target_update_period)
            return TrainingState(new_params, target_params, new_opt_state, steps, next_rng_key), extra

        self._sgd_step = self.over_devices(sgd_step)
        self._data_iterator = data_iterator
        key_params, key_target, key_state = jax.random.split(random_key, 3)
        initial_params = init(key_params, BATCHES.observation[0])
        self._state = on_all_devices(
            TrainingState(
                params=initial_params,
                target_params=init(key_target, BATCHES.observation[0]),
                opt_state=optimizer.init(initial_params),
                steps=0,
                rng_key=key_state,
            )
        )

    def step(self) -> None:
        self._state, _ = self._sgd_step(self._state, on_all_devices(next(self._data_iterator)))

    def get_variables(self, names: list[str]) -> list[Any]:
        return [of_first_device(self._state.params)]

    def save(self) -> TrainingState:
        return of_first_device(self._state)

    def restore(self, state: TrainingState) -> None:
        self._state = on_all_devices(state)


class OtherNames(ZooAgent):
    """Keeps its target network elsewhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.target = self.__dict__.pop("_target_params")
