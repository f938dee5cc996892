"""Every figure that this library sets itself, measured, with the bound it must reach and whether it does.

    make bench ARGS=--quick                 # eight minutes; without --quick half an hour, and narrower quartiles
    python -m experiments.benchmarks.goals --only step fed_round --jaxpruner ../jaxpruner

Both sides of a figure run in one process, in shuffled order. Each part times its baseline twice: where the second is
off by more than 3 %, the machine was too busy, and there is no verdict.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.benchmarks import codec, fed_round, jaxpruner, rl_collect, step
from experiments.benchmarks.timing import Timing
from experiments.harness.tables import markdown_table

ALLOWED_DRIFT = 0.03


class Effort(NamedTuple):
    """How long is measured.

    Attributes:
        rounds: Counted rounds of what takes milliseconds.
        few: Repetitions of what takes seconds.
        jaxpruner: A checkout of JaxPruner; None if there is none.
    """

    rounds: int
    few: int
    jaxpruner: str | None


class Found(NamedTuple):
    """What a part measured.

    Attributes:
        figures: By the name of a goal.
        control: The baseline's second copy / the baseline; None where the part has none.
    """

    figures: Mapping[str, float]
    control: float | None = None


class Goal(NamedTuple):
    """A figure that must be reached.

    Attributes:
        peer: What is 1, or the unit.
        bound: What must be reached.
        is_most: Whether less is better.
    """

    peer: str
    bound: float
    is_most: bool

    def is_reached(self, figure: float) -> bool:
        """Whether a figure is within the bound."""
        return figure <= self.bound if self.is_most else figure >= self.bound


def _step(effort: Effort) -> Found:
    timings, _ = step.measure(step.ALGORITHMS, 0.8, effort.rounds, 64)
    return Found({name: timing.ratio for name, timing in timings.items()}, timings["dense, again"].ratio)


def _fed_round(effort: Effort) -> Found:
    clients, figures, controls = fed_round.random_clients(10, 200), {}, []
    for model in fed_round.MODELS:
        timings = fed_round.measure(model, clients, 20, 5, effort.few)
        figures[f"ScanBackend, {model} model"] = 1 / timings["ScanBackend"].ratio
        controls.append(timings["FedJAX, again"].ratio)
    return Found(figures, max(controls, key=lambda ratio: abs(ratio - 1)))


def _codec(effort: Effort) -> Found:
    rng = np.random.default_rng(0)
    timings, _ = codec.measure(codec.random_values(rng), 0.95, rng, effort.rounds)
    return Found({f"{way}, mask by seed": timings[f"{way}: seed"].milliseconds for way in ("encode", "decode")})


def _jaxpruner(effort: Effort) -> Found:
    if effort.jaxpruner is None:
        raise ModuleNotFoundError("give --jaxpruner, a checkout of JaxPruner")
    tables = jaxpruner.report(effort.jaxpruner, 24_000_000, 64, effort.few)
    theirs: Callable[[Mapping[str, Timing]], float] = lambda timings: timings["JaxPruner"].ratio  # noqa: E731
    figures = {name: theirs(timings) for name, timings in tables.items() if not name.startswith("step")}
    for algorithm in ("magnitude", "rigl"):
        timings = tables[f"step, {algorithm}"]
        for side in ("this library", "this library, packed masks"):
            figures[f"step, {algorithm}, {side}"] = timings[side].ratio / theirs(timings)
    return Found(figures, tables["step, magnitude"]["dense Adam, again"].ratio)


def _dopamine(effort: Effort) -> Found:
    from experiments.versus_dopamine import dopamine_side, our_side
    from experiments.versus_dopamine.outcomes import DOPAMINE

    steps = 800 * effort.few
    ours = our_side.run("breakout", range(5), steps)[0].steps_per_cpu_second
    theirs = dopamine_side.run("breakout", DOPAMINE, 0, steps).steps_per_cpu_second
    ((_, _, _, pong),) = rl_collect.measure(32, 1, effort.few, {"collect": 640})
    return Found({"MinAtar, fused trainer": ours / theirs, "Pong, collecting from 32 games": float(pong)})


def _at_most(peer: str, bounds: Mapping[str, float]) -> dict[str, Goal]:
    return {name: Goal(peer, bound, is_most=True) for name, bound in bounds.items()}


def _at_least(peer: str, bounds: Mapping[str, float]) -> dict[str, Goal]:
    return {name: Goal(peer, bound, is_most=False) for name, bound in bounds.items()}


PARTS: dict[str, tuple[Callable[[Effort], Found], dict[str, Goal]]] = {
    "step": (
        _step,
        _at_most(
            "dense Adam",
            {
                "magnitude": 1.06,
                "magnitude, explicit refresh": 1.03,
                **dict.fromkeys(("static_sparse", "set", "rigl", "granet", "acdc"), 1.10),
                "magnitude, uint8 masks": 1.08,
                "rigl, uint8 masks": 1.12,
                "rigl, masks in zeros": 1.20,
                "magnitude_ste": 1.30,
            },
        ),
    ),
    "fed_round": (_fed_round, _at_least("FedJAX", {"ScanBackend, conv model": 2.0, "ScanBackend, dense model": 1.5})),
    "codec": (_codec, _at_most("ms", {"encode, mask by seed": 5.0, "decode, mask by seed": 5.0})),
    "jaxpruner": (
        _jaxpruner,
        {
            **_at_least(
                "JaxPruner",
                {"one array": 150.0, "masks, magnitude": 120.0, "masks, global_magnitude": 100.0, "masks, rigl": 100.0},
            ),
            **_at_most(
                "JaxPruner",
                {
                    f"step, {algorithm}, {side}": 1.0
                    for algorithm in ("magnitude", "rigl")
                    for side in ("this library", "this library, packed masks")
                },
            ),
        },
    ),
    "dopamine": (
        _dopamine,
        _at_least("Dopamine", {"MinAtar, fused trainer": 6.0, "Pong, collecting from 32 games": 3.5}),
    ),
}


def rows(part: str, effort: Effort) -> list[tuple[str, ...]]:
    """Measures a part: figure, peer, what was measured, what must be reached, and the verdict."""
    measure, goals = PARTS[part]
    try:
        found = measure(effort)
    except ModuleNotFoundError as error:
        return [(name, goal.peer, "", _bound(goal), f"not measured: {error}") for name, goal in goals.items()]
    is_steady = found.control is None or abs(found.control - 1) <= ALLOWED_DRIFT
    lines: list[tuple[str, ...]] = []
    for name, goal in goals.items():
        figure = found.figures[name]
        verdict = "pass" if goal.is_reached(figure) else "short"
        if not is_steady:
            verdict = f"none: the control is {found.control:.3f}"
        lines.append((name, goal.peer, f"{figure:.3g}", _bound(goal), verdict))
    return lines


def _bound(goal: Goal) -> str:
    return f"{'<=' if goal.is_most else '>='} {goal.bound:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each part as it ends.

    Args:
        arguments: Command line; None for the process's own.

    Returns:
        Exit status: 0 if every figure that has a verdict passes.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: eight minutes on two cores")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="of the parts")
    parser.add_argument("--jaxpruner", metavar="PATH", help="a checkout of JaxPruner to compare with")
    options = parser.parse_args(arguments)
    if options.jaxpruner and "jaxpruner" in options.only:
        jaxpruner.load(options.jaxpruner)  # a wrong path must not cost the parts before
    effort = Effort(9, 3, options.jaxpruner) if options.quick else Effort(41, 9, options.jaxpruner)
    print(f"{jax.default_backend()}, {jax.device_count()} device, jax {jax.__version__}\n", flush=True)
    verdicts = []
    for part in options.only:
        measured = rows(part, effort)
        verdicts += [verdict for *_, verdict in measured]
        print(f"### {part}\n\n{markdown_table(('', 'peer', 'measured', 'must reach', ''), measured)}\n", flush=True)
    return int("short" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
