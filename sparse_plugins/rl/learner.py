"""A sparse learner for any network: online and target parameters, masks, optimizer state and key in one pytree."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.layers.layers_at_hand import layers_at_hand
from sparse_plugins.core.selection.random_scores import key_of_masks
from sparse_plugins.core.summary import describe_plan, summarize_sparsity
from sparse_plugins.core.transform.state import SparseState, find_sparse_state
from sparse_plugins.core.trees import PyTree, exportable
from sparse_plugins.core.updater_defaults import updater_and_rest
from sparse_plugins.rl.network_layers import layers_of_network
from sparse_plugins.rl.target_network import TargetFollower, TargetPolicy

__all__ = ["LearnerState", "SparseLearner"]


@exportable("LearnerState")
class LearnerState(NamedTuple):
    """Everything a learner goes on from.

    Attributes:
        params: Online parameters, exactly 0 outside the masks: what acts and learns.
        target_params: Parameters of the target network, of the same structure; None without one.
        optimizer_state: State of the wrapped optimizer; `core.find_sparse_state` finds masks, schedule count and key.
        key: JAX key of acting and of the loss.
    """

    params: PyTree
    target_params: PyTree
    optimizer_state: PyTree
    key: jax.Array

    @property
    def sparse_state(self) -> SparseState:
        """Masks, schedule count and the key of random scores."""
        return find_sparse_state(self.optimizer_state)

    @property
    def steps(self) -> jax.Array:
        """int32[], optimizer steps so far."""
        return self.sparse_state.count

    def of_seed(self, place: int) -> "LearnerState":
        """The state of one seed, of a state with a leading axis of seeds.

        Args:
            place: Number of the seed along that axis.
        """
        return jax.tree.map(lambda leaf: leaf[place], self)

    def summarize(self) -> dict[str, jax.Array]:
        """The sparsity of the online network, over all seeds if there are several; see `core.summarize_sparsity`.

        It counts what has a mask: an axis of seeds gives a bias two axes, but does not make it prunable.
        """
        return summarize_sparsity(self.params, masks=self.sparse_state.masks)


class _TakesWords(type):
    """Lets an `updater` be an algorithm with the words of `core.sparsify` beside the fields, of subclasses too."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        if "updater" in fields:
            updater, fields = updater_and_rest(fields.pop("updater"), fields, cls)
            fields["updater"] = updater
        elif words := [name for name in ("algorithm", "sparsity", "total_steps") if name in fields]:
            raise TypeError(
                f"{', '.join(words)} came without an updater: give {cls.__name__} updater='rigl', or another "
                "algorithm, beside it."
            )
        return super().__call__(*args, **fields)


class _Follows(NamedTuple):
    """What keeps an agent sparse, once the axes of its parameters are known."""

    updater: BaseUpdater
    follower: TargetFollower
    optimizer: optax.GradientTransformationExtraArgs


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SparseLearner(metaclass=_TakesWords):
    """Pure functions of a sparse agent: init, act, learn and sync; jit, scan and vmap them as you like.

    Which axes of a parameter stack layers, and which are inputs and outputs, `init` reads from the network's `apply`
    with the inputs that it is given, unless the updater knows its `layers` already; `describe_plan` says what it read.
    It is traced once. A learner that goes on from a state without having made one asks for `reading(*inputs)` if that
    makes a difference.

    Under `vmap` over seeds a mask update and a copy to the target network stay branches, so that a step without one
    costs what it costs alone.

    Attributes:
        network: Whatever has `init(key, *inputs) -> params`, such as an `hk.Transformed`, or a pair (init, apply).
        loss_fn: `(params, target_params, key, batch) -> (loss float[], anything else to return)`.
        act_fn: `(params, key, observation, *arguments) -> action`.
        optimizer: Any optax transformation.
        updater: Keeps the masks; its schedule counts optimizer steps (`rl.Clock` converts others). Given as an
            algorithm, by name or class, it takes beside it what `core.sparsify` does: `sparsity`, `total_steps`, ...
        target_policy: When the target network gets the masks.
        target_period: Optimizer steps between two copies to the target network; None for no target network.
        target_step_size: Part of the online network in each copy, in (0, 1]; below 1 it is Polyak averaging.
        mask_key: JAX key of random masks and scores; None derives it from the key given to `init`. The updater's
            `rng_seed` counts, too: agents of two keys, or of two seeds, have different masks.

    Raises:
        TypeError: If the network has no `init`, or `updater` is none.
        ValueError: If a field has a value that is not allowed, or the words do not make an updater.

    Example:
        >>> learner = SparseLearner(
        ...     network=(lambda key, x: {"w": jnp.ones((x.size, 2))}, None),
        ...     loss_fn=lambda params, target, key, x: (jnp.sum((x @ params["w"]) ** 2), {}),
        ...     act_fn=lambda params, key, x: jnp.argmax(x @ params["w"]),
        ...     optimizer=optax.sgd(0.1),
        ...     updater="static_sparse", sparsity=0.5)
        >>> state = learner.init(jax.random.key(0), jnp.ones(4))
        >>> state, _ = learner.learn(state, jnp.ones(4))
        >>> int(state.steps), int(jnp.count_nonzero(state.params["w"]))
        (1, 4)
    """

    network: Any
    loss_fn: Callable[..., tuple[jax.Array, Any]]
    act_fn: Callable[..., Any]
    optimizer: optax.GradientTransformation
    updater: BaseUpdater
    target_policy: TargetPolicy | str = TargetPolicy.AT_MASK_UPDATE
    target_period: int | None = 1
    target_step_size: float = 1.0
    mask_key: jax.Array | None = None

    _read: dict[Any, _Follows] = dataclasses.field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not hasattr(self.network, "init") and not (isinstance(self.network, tuple) and len(self.network) == 2):
            raise TypeError(
                f"network is {self.network!r}; give something with `init`, such as hk.transform(f), or (init, apply)."
            )
        if self.target_period is not None and (not isinstance(self.target_period, int) or self.target_period < 1):
            raise ValueError(
                f"target_period is {self.target_period!r}; give optimizer steps between copies, 1 or more, or None for "
                "no target network."
            )
        if not 0.0 < self.target_step_size <= 1.0:
            raise ValueError(f"target_step_size is {self.target_step_size!r}; allowed are numbers in (0, 1].")
        if (unit := getattr(self.updater.scheduler, "step_unit", "optimizer step")) != "optimizer step":
            raise ValueError(
                f"the updater's schedule counts {unit!r}; convert it with rl.Clock(...).in_optimizer_steps(updater)."
            )
        object.__setattr__(self, "target_policy", self._following(self.updater).follower.policy)

    def _following(self, updater: BaseUpdater) -> _Follows:
        follower = TargetFollower(updater, self.target_policy, self.target_period, self.target_step_size)
        return _Follows(updater, follower, updater.wrap_optax(self.optimizer))

    @property
    def _init(self) -> Callable[..., PyTree]:
        return self.network.init if hasattr(self.network, "init") else self.network[0]

    def reading(self, *inputs: Any) -> Self:
        """The learner with an updater that knows the axes of the network's parameters.

        Args:
            *inputs: What the network's `init` takes after its key; shapes will do.
        """
        if self.updater.layers is not None:
            return self
        key = jax.eval_shape(lambda: jax.random.key(0))
        layers = layers_of_network(self.network, jax.eval_shape(self._init, key, *inputs), key, inputs)
        return self if layers is None else dataclasses.replace(self, updater=self.updater.knowing(layers))

    def seeded(self, key: jax.Array) -> Self:
        """The learner with another `mask_key`, which may be traced."""
        other = dataclasses.replace(self, mask_key=key)
        object.__setattr__(other, "_read", self._read)  # of the same network
        return other

    def describe_plan(self, state: LearnerState) -> str:
        """What a run is going to do, as `core.describe_plan`, and how the axes of the parameters are read."""
        return describe_plan(self._of(state.params).updater, state.params)

    def _of(self, params: PyTree, *loss_inputs: Any) -> _Follows:
        """What keeps these parameters sparse; what the loss takes besides tells where nobody has read their axes."""
        if (shapes := _shapes(params)) in self._read:
            return self._read[shapes]
        follows = self._following(self.updater)
        if not loss_inputs:
            return follows
        if self.updater.layers is None and self.updater.prunes:
            found = layers_at_hand(lambda *arguments: self.loss_fn(*arguments)[0], params, *loss_inputs)
            if differing := [path for path, axes in found.items() if not axes.is_as_by_shape]:
                raise ValueError(
                    f"this learner has not made its state, and how {differing[0]!r} is pruned depends on what its axes "
                    f"are ({found[differing[0]]}): call learner.reading(*inputs), with what the network's init takes "
                    "after its key, and go on with the learner that it gives."
                )
        return self._read.setdefault(shapes, follows)

    def init(self, key: jax.Array, *inputs: Any) -> LearnerState:
        """Fresh parameters, sparse already where the algorithm starts sparse.

        Args:
            key: JAX key, typed or uint32[2].
            *inputs: What the network's `init` takes after its key, usually one observation or a batch of them.

        Returns:
            The learner's state; its masks are those of this key, unless there is a `mask_key`.
        """
        acting_key, network_key = jax.random.split(key)
        dense = self._init(network_key, *inputs)
        if (shapes := _shapes(dense)) not in self._read:
            self._read[shapes] = self._following(self.reading(*inputs).updater)
        follows = self._read[shapes]
        updater = follows.updater.seeded(key_of_masks(key) if self.mask_key is None else self.mask_key)
        optimizer_state = updater.wrap_optax(self.optimizer).init(dense)
        params = follows.updater.first_params(dense, optimizer_state)
        target = follows.follower.initial(dense, optimizer_state)
        # Copies, because a caller that donates the state must not give one buffer twice.
        return LearnerState(params, jax.tree.map(jnp.copy, target), optimizer_state, acting_key)

    def act(self, state: LearnerState, observation: Any, *arguments: Any) -> tuple[Any, LearnerState]:
        """An action of the online network, and the state with its key advanced.

        Args:
            state: The learner's state.
            observation: What `act_fn` reads.
            *arguments: Further arguments of `act_fn`, such as the probability of a random action.
        """
        key, action_key = jax.random.split(state.key)
        return self.act_fn(state.params, action_key, observation, *arguments), state._replace(key=key)

    def learn(self, state: LearnerState, batch: Any) -> tuple[LearnerState, Any]:
        """One optimizer step on the masks; target parameters follow masks and copies as they are due.

        Args:
            state: The learner's state.
            batch: What `loss_fn` reads.

        Returns:
            The next state, and what the loss returned beside itself.
        """
        key, loss_key = jax.random.split(state.key)
        grads, extra = jax.grad(self.loss_fn, has_aux=True)(state.params, state.target_params, loss_key, batch)
        follows = self._of(state.params, state.target_params, loss_key, batch)
        updates, optimizer_state = follows.optimizer.update(grads, state.optimizer_state, state.params)
        after = LearnerState(optax.apply_updates(state.params, updates), state.target_params, optimizer_state, key)
        masks_changed = self.updater.is_refresh_due(state.steps)
        target = follows.follower.after_learning(
            after.params, after.target_params, optimizer_state, after.steps, masks_changed
        )
        return after._replace(target_params=target), extra

    def sync(self, state: LearnerState) -> LearnerState:
        """Copies the online network to the target network now; `learn` calls it every `target_period` steps."""
        copied = self._of(state.params).follower.copied(state.params, state.target_params, state.optimizer_state)
        return state._replace(target_params=copied)


def _shapes(params: PyTree) -> Any:
    """What tells parameters of one network apart from those of another size."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
