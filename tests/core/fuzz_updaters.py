"""Random runs of every algorithm with odd numbers in odd places, checked against what the core promises.

    python -m tests.core.fuzz_updaters --cases 2000 --seed 1

A case is drawn from its number alone; a failure prints it, and `--only NUMBER` runs it again.
"""

import argparse
import collections
import dataclasses
import random
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

from sparse_plugins import core
from sparse_plugins.core.masks import InZeros
from tests import reference

STEPS = 5
STRUCTURES: dict[str, Any] = {
    "unstructured": core.Unstructured(),
    "2:4": core.NByM(2, 4),
    "2x2": core.Block((2, 2)),
    "channel": core.Channel(-1),
    "fan-in": core.ConstantFanIn(),
}
ALGORITHMS = [name for name in core.all_algorithm_names() if name != "no_prune"]
GLOBAL = {"global_magnitude", "global_saliency", "snip", "grasp", "granet"}  # one ranking of single weights
# The first three get through a step whose gradients are broken, as careful users have it.
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "guarded sgd": lambda: optax.chain(optax.zero_nans(), optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
    "guarded adam": lambda: optax.chain(optax.zero_nans(), optax.clip(1.0), optax.adam(0.01, eps=1e-3)),
    "guarded lion": lambda: optax.chain(optax.zero_nans(), optax.lion(0.01)),
    "adam": lambda: optax.adam(0.01, eps=1e-3),
}
SHAPES = ((16,), (8, 6), (4, 4), (3, 3, 2, 4))
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """A run, as it is drawn."""

    number: int
    algorithm: str
    structure: str
    storage: bool | str
    dtype: str
    optimizer: str
    distribution: str
    sparsity: float
    freq: int
    weights: str
    gradients: tuple[str, ...]


def draw(number: int, seed: int = 0) -> Case:
    """The case of a number."""
    source = random.Random(f"{seed} {number}")
    algorithm = ALGORITHMS[number % len(ALGORITHMS)]
    structure = "unstructured" if algorithm in GLOBAL else source.choice([*STRUCTURES])
    optimizer = "guarded adam" if algorithm == "fisher" else source.choice([*OPTIMIZERS])
    return Case(
        number,
        algorithm,
        "fan-in" if algorithm == "srigl" else structure,
        source.choice([True, False, "zeros"]),
        source.choice(DTYPES),
        optimizer,
        source.choice(["uniform", "erk"]),
        source.choice([0.0, 0.3, 0.5, 0.75, 0.9, 0.98]),
        source.choice([1, 2, 3]),
        source.choice(["normal", "ties", "tiny", "zeros", "large"]),
        tuple(source.choice([*NUMBERS]) for _ in range(STEPS)),
    )


def _some(values: np.ndarray, rng: np.random.Generator, odd: float) -> np.ndarray:
    return np.where(rng.random(values.shape) < 0.3, odd, values)


NUMBERS: dict[str, Callable[[np.random.Generator, tuple[int, ...], Any], np.ndarray]] = {
    "normal": lambda rng, shape, limits: rng.normal(size=shape),
    "ties": lambda rng, shape, limits: rng.integers(-1, 2, shape).astype(float),
    "zeros": lambda rng, shape, limits: np.where(rng.random(shape) < 0.5, 0.0, -0.0),
    "tiny": lambda rng, shape, limits: rng.normal(size=shape) * float(limits.smallest_subnormal) * 4,
    "large": lambda rng, shape, limits: rng.normal(size=shape) * float(limits.max) / 1e3,
    "some NaN": lambda rng, shape, limits: _some(rng.normal(size=shape), rng, np.nan),
    "some infinite": lambda rng, shape, limits: _some(rng.normal(size=shape), rng, np.inf),
    "all NaN": lambda rng, shape, limits: np.full(shape, np.nan),
}


def numbers(case: str, rng: np.random.Generator, dtype: str) -> dict[str, jax.Array]:
    """A tree of the shapes that all cases share, so that nothing is compiled twice."""
    limits = ml_dtypes.finfo(dtype)
    draw_leaf = lambda shape: jnp.asarray(NUMBERS[case](rng, shape, limits).astype(np.float32), dtype)  # noqa: E731
    with np.errstate(over="ignore"):
        return {str(i): draw_leaf(shape) for i, shape in enumerate(SHAPES)}


def make(case: Case) -> core.BaseUpdater:
    """The updater of a case."""
    settings: dict[str, Any] = {
        "algorithm": case.algorithm,
        "sparsity": case.sparsity,
        "dist_type": case.distribution,
        "sparsity_type": STRUCTURES[case.structure],
        "use_packed_masks": case.storage,
        "update_freq": case.freq,
        "update_start_step": 1,
        "update_end_step": STEPS - 2,
        "drop_fraction": 0.5,
        "skip_gradients": False,
    }
    if case.algorithm in GLOBAL:
        del settings["dist_type"]
    if case.algorithm in GLOBAL or case.algorithm == "srigl":
        del settings["sparsity_type"]
    return core.create_updater_from_config(settings)


def kept_of(structure: str, shape: tuple[int, ...], sparsity: float) -> int | None:
    """Entries that the end of the schedule keeps of a leaf; None where it depends on which blocks are kept."""
    size = int(np.prod(shape))
    count = lambda n: reference.keep_count(n, sparsity)  # noqa: E731
    if structure == "unstructured":
        return count(size)
    if structure == "2:4":
        whole, rest = divmod(shape[-2], 4)
        kept = max(count(4), 2)
        return size // shape[-2] * (whole * kept + min(rest, kept))
    if structure == "channel":
        return count(shape[-1]) * (size // shape[-1])
    if structure == "fan-in":
        return count(size // shape[-1]) * shape[-1]
    return count(size // 4) * 4 if all(length % 2 == 0 for length in shape[-2:]) else None


def check(case: Case) -> str:
    """Runs a case.

    Returns:
        'checked', or why the library refused to build it.

    Raises:
        AssertionError: If a promise is broken.
    """
    rng = np.random.default_rng(case.number)
    params, updater = numbers(case.weights, rng, case.dtype), None
    try:
        updater = make(case)
        tx = updater.wrap_optax(OPTIMIZERS[case.optimizer]())
        state = tx.init(params)
    except ValueError as error:
        return str(error)[:60]
    params = updater.pre_forward_update(params, state)
    for step, gradient in enumerate(case.gradients):
        grads = numbers(gradient, rng, case.dtype)
        norms = {name: jnp.ones(p.shape[-2]) if p.ndim > 1 else None for name, p in params.items()}
        extra = {"activations": norms, "hessian_gradient": grads}
        updates, after = tx.update(grads, state, params, **extra)
        again, twin = tx.update(grads, jax.tree.map(jnp.array, state), params, **extra)
        same_bits((updates, after), (again, twin))
        moved = optax.apply_updates(params, updates)
        check_step(case, updater, params, moved, after)
        if not all(bool(jnp.isfinite(p).all()) for p in moved.values()):
            return "checked until weights overflowed"
        params, state = moved, after
        if step == STEPS - 2:
            check_end(case, updater, params, state)
    return "checked"


def check_step(case: Case, updater: core.BaseUpdater, before: Any, params: Any, state: core.SparseState) -> None:
    """Zeros outside the masks, and nothing that the forward view would change."""
    core.check_state(params, state)
    view = updater.pre_forward_update(params, state)
    for name, mask in core.unpack_masks(params, state.masks).items():
        if not jax.tree.leaves(mask):
            continue
        outside, stored = np.asarray(params[name])[np.asarray(mask) == 0], state.masks[name]
        finite = np.isfinite(np.asarray(before[name], np.float32))[np.asarray(mask) == 0]
        assert not outside[finite].any(), f"{name} is not 0 outside its mask"
        if isinstance(stored, InZeros) or np.isfinite(np.asarray(params[name], np.float32)).all():
            same_bits(view[name], params[name])


def check_end(case: Case, updater: core.BaseUpdater, params: Any, state: core.SparseState) -> None:
    """The target, in every leaf or in all leaves together."""
    kept = {
        name: int(mask.sum()) for name, mask in core.unpack_masks(params, state.masks).items() if jax.tree.leaves(mask)
    }
    # Masks in the zeros of the parameters say nothing of a layer that is left to the optimizer.
    says_nothing = lambda name: case.storage == "zeros" and not targets[name]  # noqa: E731
    targets = updater.target_sparsities(params)
    if case.algorithm in GLOBAL:
        if any(map(says_nothing, kept)):
            return
        size = sum(int(np.prod(SHAPES[int(name)])) for name in kept)
        assert sum(kept.values()) == reference.keep_count(size, case.sparsity), kept
        return
    for name, count in kept.items():
        expected = None if says_nothing(name) else kept_of(case.structure, SHAPES[int(name)], targets[name])
        assert expected in (None, count), f"{name} keeps {count}, not {expected}"


def same_bits(tree: Any, other_tree: Any) -> None:
    """Equal as bytes, NaN included."""
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other_tree), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def main() -> None:
    """Runs cases, and says how many were checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="how many, from number 0")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--only", type=int, help="this one alone")
    options = parser.parse_args()
    outcomes: collections.Counter[str] = collections.Counter()
    warnings.simplefilter("ignore", UserWarning)  # layers that a common ranking empties
    for number in range(options.cases) if options.only is None else [options.only]:
        case = draw(number, options.seed)
        try:
            outcomes[check(case)] += 1
        except AssertionError as error:
            outcomes["BROKEN"] += 1
            print(f"{case}\n  {error}", flush=True)
    for outcome, count in outcomes.most_common():
        print(f"{count:6}  {outcome}")
    if outcomes["BROKEN"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
