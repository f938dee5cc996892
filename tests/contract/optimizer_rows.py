"""The optimizers of the contract suite: every one that optax has is a row, or is named here with the reason why not."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from tests.contract.rows import LABELS, STEPS, record_extra, reduce_on_plateau

Make = Callable[[], optax.GradientTransformation]

ONLY_W = {"w": True, "head": False, "b": False}


def with_only(tx: optax.GradientTransformation, *names: str) -> optax.GradientTransformationExtraArgs:
    """For optimizers that refuse extra arguments which they do not know."""

    def init(params: Any) -> Any:
        # A line search starts from weakly typed numbers, for which alone a second program would be compiled.
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), tx.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return tx.update(updates, state, params, **{name: extra[name] for name in names})

    return optax.GradientTransformationExtraArgs(init, update)


def every_other(step: Any, **extra: Any) -> Any:
    return step % 2 == 0


# A row's name holds the names of what it covers.
OPTIMIZERS: dict[str, Make] = {
    # optax
    "adabelief": lambda: optax.adabelief(0.1),
    "adadelta": lambda: optax.adadelta(1.0),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "adafactor, not factored": lambda: optax.adafactor(0.1, momentum=0.9),
    "adagrad": lambda: optax.adagrad(0.1),
    "adam": lambda: optax.adam(0.1),
    "adam in bfloat16": lambda: optax.adam(0.1, mu_dtype=jnp.bfloat16),
    "adamax": lambda: optax.adamax(0.1),
    "adamaxw": lambda: optax.adamaxw(0.1),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, STEPS)),
    "adan": lambda: optax.adan(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "fromage": lambda: optax.fromage(0.1),
    "lamb": lambda: optax.lamb(0.1),
    "lars": lambda: optax.lars(0.1),
    "lbfgs": lambda: optax.lbfgs(0.1, memory_size=3, linesearch=None),
    "lbfgs with scale_by_zoom_linesearch": lambda: with_only(
        optax.lbfgs(memory_size=2, linesearch=optax.scale_by_zoom_linesearch(2)), "value", "grad", "value_fn"
    ),
    "sgd with scale_by_backtracking_linesearch": lambda: with_only(
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(3)), "value", "grad", "value_fn"
    ),
    "lion": lambda: optax.lion(0.1),
    "nadam": lambda: optax.nadam(0.1),
    "nadamw": lambda: optax.nadamw(0.1),
    "noisy_sgd": lambda: optax.chain(optax.noisy_sgd(0.1, key=1), optax.trace(0.9)),
    "novograd": lambda: optax.novograd(0.1),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(0.1),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(0.1),
    "polyak_sgd": lambda: optax.polyak_sgd(0.1),
    "radam": lambda: optax.radam(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, centered=True, momentum=0.9),
    "rprop": lambda: optax.rprop(0.1),
    "sgd": lambda: optax.sgd(0.1),
    "sgd with momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "sign_sgd": lambda: optax.sign_sgd(0.1),
    "signum": lambda: optax.signum(0.1),
    "sm3": lambda: optax.sm3(0.1),
    "yogi": lambda: optax.yogi(0.1),
    # optax.contrib
    "acprop": lambda: contrib.acprop(0.1),
    "ademamix": lambda: contrib.ademamix(0.1),
    "adopt": lambda: contrib.adopt(0.1),
    "cocob": lambda: contrib.cocob(),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(1.0),
    "dog": lambda: contrib.dog(),
    "dowg": lambda: contrib.dowg(),
    "madgrad": lambda: contrib.madgrad(0.1),
    "mechanize": lambda: contrib.mechanize(optax.adam(0.1)),
    "momo": lambda: contrib.momo(),
    "momo_adam": lambda: contrib.momo_adam(),
    "muon": lambda: contrib.muon(0.1, ns_steps=1),
    "prodigy": lambda: contrib.prodigy(),
    "reduce_on_plateau": reduce_on_plateau,
    "sam with normalize": lambda: with_only(
        contrib.sam(optax.adam(0.1), optax.chain(contrib.normalize(), optax.sgd(0.1)))
    ),
    "schedule_free": lambda: contrib.schedule_free(optax.sgd(0.1, momentum=0.9), 0.1),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(0.1),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(0.1),
    "simplified_ademamix": lambda: contrib.simplified_ademamix(0.1),
    "sophia with hutchinson_estimator_diag_hessian": lambda: contrib.sophia(0.1, update_interval=2),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.adam(0.1)),
    # Wrappers and links.
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation(),
    "MultiSteps with extra arguments": lambda: optax.GradientTransformationExtraArgs(
        *(lambda accumulated: (accumulated.init, accumulated.update))(optax.MultiSteps(contrib.momo(), 2))
    ),
    "MultiSteps with skip_not_finite": lambda: optax.MultiSteps(
        optax.adam(0.1), 3, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    "apply_every": lambda: optax.chain(optax.adam(0.1), optax.apply_every(2)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.chain(record_extra(), optax.adam(0.1)), 3),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), record_extra(), optax.adam(0.1)),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.adam(0.1), every_other),
    "conditionally_transform": lambda: optax.conditionally_transform(optax.adam(0.1), every_other),
    "ema": lambda: optax.chain(optax.ema(0.9), optax.scale(-0.1)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "inject_hyperparams with a stateful one": lambda: optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.schedules.WrappedSchedule(optax.cosine_decay_schedule(0.1, STEPS))
    ),
    "masked": lambda: optax.masked(optax.adam(0.1), ONLY_W),
    "multi_transform": lambda: optax.multi_transform({"wrapped": optax.adam(0.1), "plain": optax.lion(0.1)}, LABELS),
    "named_chain of add_noise and adam": lambda: optax.named_chain(
        ("noise", optax.add_noise(0.1, 0.5, key=1)), ("adam", optax.adam(0.1))
    ),
    "normalize_by_update_norm and trace": lambda: optax.chain(optax.normalize_by_update_norm(), optax.trace(0.9, True)),
    "partition": lambda: optax.partition({"wrapped": optax.adam(0.1), "plain": optax.sgd(0.1)}, LABELS),
    "zero_nans": lambda: optax.chain(optax.zero_nans(), optax.adam(0.1)),
    "selective_transform with freeze": lambda: optax.selective_transform(
        optax.chain(optax.freeze(ONLY_W), optax.adam(0.1)), freeze_mask={"w": False, "head": False, "b": True}
    ),
    "snapshot": lambda: optax.chain(optax.snapshot("norm", optax.tree.norm), optax.adam(0.1)),
    "stateless links": lambda: optax.chain(
        optax.adaptive_grad_clip(1.0),
        optax.clip_by_block_rms(1.0),
        optax.centralize(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_param_block_norm(),
        optax.scale_by_trust_ratio(),
        optax.scale_by_rss(),
        optax.scale(-0.1),
    ),
}
# Those with no number of its own for each weight: nothing to restart.
NO_MOMENTS = {"adafactor", "fromage", "polyak_sgd", "sgd", "sgd with scale_by_backtracking_linesearch", "sign_sgd"}

# Named errors for updaters that bring weights back, when the state is made.
UNSUPPORTED: dict[str, tuple[Make, str]] = {
    "flatten": (lambda: optax.flatten(optax.adam(0.1)), r"state '0/mu' of shape \(78,\).* Take out .*optax.flatten"),
    "flatten in a branch": (
        lambda: optax.partition({"wrapped": optax.flatten(optax.lion(0.1)), "plain": optax.adam(0.1)}, LABELS),
        r"state 'inner_states/wrapped/.*' of shape \(48,\)",
    ),
    "galore": (lambda: contrib.galore(0.1, rank=2), r"of shape \(2, 4\).* mixes weights \(optax.contrib.galore\)"),
    "galore of full rank": (lambda: contrib.galore(0.1), "mixes weights"),
}
# For every updater: it needs another kind of parameters.
LOOKAHEAD: Make = lambda: optax.chain(optax.clip(1.0), optax.lookahead(optax.sgd(0.1), 2, 0.5))  # noqa: E731

# The rest, and why it needs no row.
LEFT_OUT = {
    **dict.fromkeys(("adaptive_grad_clip", "add_decayed_weights", "centralize", "clip"), "no state"),
    **dict.fromkeys(("clip_by_block_rms", "clip_by_global_norm", "identity", "keep_params_nonnegative"), "no state"),
    **dict.fromkeys(("scale", "set_to_zero", "stateless_with_tree_map"), "no state"),
    **dict.fromkeys(("schedule_free_eval_params", "with_extra_args_support"), "no transformation"),
    "inject_stateful_hyperparams": "deprecated for inject_hyperparams",
    "optimistic_adam": "deprecated for optimistic_adam_v2",
    "measure_with_ema": "measures, and changes nothing",
    **dict.fromkeys(("differentially_private_aggregate", "dpsgd"), "a gradient per example: put it before the updater"),
    "lookahead": "an error of its own, see above",
}


def factories() -> set[str]:
    """Names of all that makes transformations in optax; links called scale_by_... are parts of these."""

    def makes_transformation(value: Any) -> bool:
        function = getattr(value, "func", value)
        if not inspect.isfunction(function):
            return False
        return function.__module__ == "optax._src.alias" or "GradientTransformation" in str(
            inspect.signature(function).return_annotation
        )

    named = {name for name, value in vars(optax).items() if makes_transformation(value)}
    named |= {name for name, value in vars(contrib).items() if inspect.isfunction(value)}
    return {name for name in named if not name.startswith(("_", "scale_by_"))}


def covered() -> set[str]:
    """Names in rows, named errors and what is left out."""
    return {word for name in (*OPTIMIZERS, *UNSUPPORTED, *LEFT_OUT) for word in re.findall(r"\w+", name)}
