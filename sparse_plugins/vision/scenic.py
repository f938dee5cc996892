"""Scenic: its own trainers, steps and checkpoints, with a sparse train state.

Scenic's step applies the updates of `train_state.tx` after averaging gradients over replicas, and its evaluation reads
`train_state.params`. So a train state that starts on the masks stays on them, on all replicas alike, and no step has to
be copied or wrapped. Nothing here imports Scenic.
"""

import difflib
import functools
import inspect
import logging
import types
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.algorithms.pruning import NoPruning
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.config import create_updater_from_config
from sparse_plugins.core.distributions import kernels_only
from sparse_plugins.core.restored import check_restored
from sparse_plugins.core.run_length import concerns_of_length
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.summary import describe_plan
from sparse_plugins.core.transform.state import find_sparse_state, holds_sparse_state
from sparse_plugins.core.trees import PyTree
from sparse_plugins.core.updater_defaults import AnyUpdater, updater_from

__all__ = ["create_updater", "sparsify_train_state", "sparsify_trainer"]

_KEY = "sparsity_config"
_FIELDS = ("tx", "params", "opt_state", "global_step", "replace")


def create_updater(config: Any) -> BaseUpdater:
    """The updater that `config.sparsity_config` describes.

    Its keys are those of `core.SparsityConfig`, among them all of JaxPruner's. Without a `filter_fn`, kernels are
    pruned, by name: positional embeddings and class tokens have two axes and more, too.

    Args:
        config: ConfigDict of a Scenic experiment.

    Returns:
        The updater; `core.NoPruning()` if there is no `sparsity_config` or it is None.

    Raises:
        ValueError: For a misspelt key, here or there, an unknown algorithm or a value that is not allowed.

    Example:
        >>> settings = {"algorithm": "magnitude", "sparsity": 0.8, "update_start_step": 10, "update_end_step": 10}
        >>> create_updater({"batch_size": 8, "sparsity_config": settings}).scheduler.target_step
        10
    """
    if _KEY not in config:
        if "algorithm" in config:
            raise ValueError(f"this is the {_KEY} itself; give the experiment's config, of which it is one key.")
        if near := difflib.get_close_matches(_KEY, list(config), n=1, cutoff=0.8):
            raise ValueError(f"config has the key {near[0]!r} and no {_KEY!r}; rename it.")
    settings = config.get(_KEY)
    if settings is None:
        return NoPruning()
    given = settings.get("filter_fn") if hasattr(settings, "keys") else getattr(settings, "filter_fn", None)
    return create_updater_from_config(settings, filter_fn=given or kernels_only)


def sparsify_train_state(train_state: Any, updater: AnyUpdater, **words: Any) -> Any:
    """A Scenic train state with masks, its parameters on them.

    Call it on the new, unreplicated state, after pretrained weights were put in and before a checkpoint is restored
    into it. Scenic's `train_step`, `eval_step`, `save_checkpoint` and `restore_checkpoint` then work as they are, and
    the masks are part of the checkpoint.

    Args:
        train_state: `scenic.train_lib.train_utils.TrainState` at step 0, with the dense optimizer as `tx`.
        updater: Which weights to keep, how many and when; see `create_updater`. Or an algorithm, by name or class.
        **words: For an algorithm: what `core.sparsify` takes beside it, such as `sparsity` and `total_steps`.

    Returns:
        The state with a sparse `tx`, its `opt_state` and parameters.

    Raises:
        TypeError: If `train_state` lacks what Scenic's has, its `tx` is no optax transformation or sparse already, or
            `updater` is none.
        ValueError: If it has taken steps, the words do not make an updater, or it finds nothing to prune in the state.

    Example:
        >>> import flax.struct, jax.numpy as jnp, optax
        >>> from sparse_plugins import vision
        >>> @flax.struct.dataclass
        ... class TrainState:
        ...     params: dict
        ...     tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
        ...     opt_state: tuple = ()
        ...     global_step: int = 0
        >>> state = TrainState(params={"kernel": jnp.ones((4, 4))}, tx=optax.sgd(0.1))
        >>> state = vision.scenic.sparsify_train_state(state, "static_sparse", sparsity=0.75)
        >>> int(jnp.count_nonzero(state.params["kernel"]))
        4
    """
    made = updater_from(updater, **words)
    if missing := [name for name in _FIELDS if not hasattr(train_state, name)]:
        raise TypeError(
            f"a {type(train_state).__name__} has no {', '.join(missing)}; give a "
            "scenic.train_lib.train_utils.TrainState, or a dataclass with its fields."
        )
    if train_state.global_step != 0:
        raise ValueError(
            f"the train state has taken {train_state.global_step} steps; make the new one sparse, with global_step=0, "
            "and restore the checkpoint into that."
        )
    tx = made.wrap_optax(train_state.tx)

    @jax.jit  # one program for all layers
    def start(params: PyTree) -> tuple[PyTree, PyTree]:
        opt_state = tx.init(params)
        return made.first_params(params, opt_state), opt_state

    params, opt_state = start(train_state.params)
    return train_state.replace(tx=tx, params=params, opt_state=opt_state)


def sparsify_trainer(train: Callable, *, keep_targets: bool = True) -> Callable:
    """A trainer of Scenic, sparse as `config.sparsity_config` says.

    It is Scenic's own function, in whose view `train_utils.TrainState(...)` gives a sparse state; no module is changed.
    The plan is logged before the first step. It warns of a schedule that the run is too short for, and when the run
    ends of parameters that are off their masks; nothing is asked of the device in between.

    Args:
        train: `train` of `scenic.train_lib.classification_trainer` or of another trainer that builds its state by
            `train_utils.TrainState(...)`.
        keep_targets: False goes on from a checkpoint of other target sparsities on purpose, as in
            `core.check_restored`.

    Returns:
        A function with the arguments and results of `train`.

    Raises:
        TypeError: If `train` knows no `train_utils.TrainState`.
        ValueError: When called with `config.init_from`, which trainers read after the state is built.
        CheckpointMismatchError: When the checkpoint in `workdir` is of a run whose layers end at other sparsities.

    Example:
        >>> sparsify_trainer(print)
        Traceback (most recent call last):
        TypeError: print builds no train_utils.TrainState that could be made sparse; ...
    """
    scope = getattr(train, "__globals__", {})
    train_utils: Any = scope.get("train_utils")
    if not hasattr(train_utils, "TrainState"):
        raise TypeError(
            f"{getattr(train, '__name__', train)} builds no train_utils.TrainState that could be made sparse; give a "
            "train function of Scenic, or call sparsify_train_state(state, updater) where the state is built."
        )

    @functools.wraps(train)
    def sparse_train(*args: Any, **kwargs: Any) -> Any:
        config = inspect.signature(train).bind(*args, **kwargs).arguments["config"]
        updater = create_updater(config)
        if config.get("init_from") and updater.prunes:
            raise ValueError(
                "config.init_from loads weights after the train state is built, so the masks would be those of other "
                "weights. Build the state, load the weights, then sparsify_train_state(state, updater)."
            )

        def sparse_state(*values: Any, **fields: Any) -> Any:
            state = sparsify_train_state(train_utils.TrainState(*values, **fields), updater)
            logging.getLogger(__name__).info(describe_plan(updater, state.params))
            return state

        def restore_checkpoint(*values: Any, **fields: Any) -> Any:
            state, *rest = train_utils.restore_checkpoint(*values, **fields)
            opt_state = check_restored(updater, state.params, state.opt_state, keep_targets=keep_targets)
            return (state.replace(opt_state=opt_state), *rest)

        def get_num_training_steps(*values: Any, **fields: Any) -> Any:
            steps, *rest = train_utils.get_num_training_steps(*values, **fields)
            _warn_of_length(updater, steps)
            return (steps, *rest)

        replaced = {"TrainState": sparse_state}
        for changed in (restore_checkpoint, get_num_training_steps):
            if hasattr(train_utils, changed.__name__):
                replaced[changed.__name__] = changed
        if "get_num_training_steps" not in replaced:
            _warn_of_length(updater, config.get("num_training_steps"))
        patched = types.FunctionType(
            train.__code__,
            {**scope, "train_utils": _View(train_utils, **replaced)},
            train.__name__,
            train.__defaults__,
            train.__closure__,
        )
        patched.__kwdefaults__ = train.__kwdefaults__
        results = patched(*args, **kwargs)
        _look(updater, results)
        return results

    return sparse_train


def _warn_of_length(updater: BaseUpdater, steps: int | None) -> None:
    for concern in () if steps is None else concerns_of_length(updater, steps):
        warnings.warn(concern, stacklevel=3)


def _look(updater: BaseUpdater, results: Any) -> None:
    """Looks whether the train state that a trainer returns is on its masks; one replica will do."""
    state = results[0] if isinstance(results, tuple) else results
    if updater.prunes and hasattr(state, "opt_state") and holds_sparse_state(state.opt_state):
        count = find_sparse_state(state.opt_state).count
        look = FirstCheck(updater).of_first_seed if jnp.ndim(count) else FirstCheck(updater)
        look(count if jnp.ndim(count) == 0 else count[0], state.params, state.opt_state)


class _View:
    """A module with some names replaced, for one reader."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module = module
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
