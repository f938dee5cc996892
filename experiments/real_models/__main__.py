"""`python -m experiments.real_models`: traces and prunes models that others publish; a table of docs/layers.md."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.harness.files import write_whole
from experiments.real_models import sequences, vision
from experiments.real_models.traced import Traced
from sparse_plugins import core

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"
SPARSITY = 0.9
_BLOCK = re.compile(r"(<!-- python -m experiments\.real_models -->\n).*?(<!-- end -->\n)", re.DOTALL)
_HEAD = ("model", "arrays", "stacks", "layers pruned", "with heads", "dense", "not followed", "kept at 90%")


def read(model: Traced) -> core.Layers:
    """What its axes are."""
    return core.trace_layers(model.apply, model.params, *model.inputs)


def updater_of(layers: core.Layers) -> core.BaseUpdater:
    """Prunes at once, by magnitude."""
    at_once = core.OneShotSchedule(target_step=0)
    return core.build_updater("magnitude", sparsity=SPARSITY, scheduler=at_once, layers=layers)


def line(model: Traced) -> list[str]:
    """A line of the table; nothing is computed for it."""
    layers = read(model)
    updater = updater_of(layers)
    plans = updater.leaf_plans(model.params).leaves
    pruned = [plan for plan in plans if plan.is_pruned]
    stacks = sum(axes.size("stack") > 1 for axes in layers.values())
    heads = sum(any(part.is_heads for part in axes.parts) for axes in layers.values())
    unknown = sum(not axes.is_known for axes in layers.values())
    counts = len(plans), stacks, sum(plan.rule.layers.layers or 1 for plan in pruned), heads
    (kept,) = re.findall(r"prunable: (\d+ of \d+) kept", core.describe_plan(updater, model.params))
    return [model.name, *map(str, counts), str(len(plans) - len(pruned)), str(unknown), kept]


def prune(model: Traced) -> str:
    """Prunes it for real, with random weights: '1382 of 13824', as the plan says.

    Raises:
        AssertionError: If a layer keeps another number of weights than its target says.
    """
    updater = updater_of(read(model))
    draw = np.random.default_rng(0).normal
    params = jax.tree.map(lambda leaf: draw(size=leaf.shape).astype(leaf.dtype), model.params)
    _, masks = updater.instant_sparsify(params)
    kept = size = 0
    plans = updater.leaf_plans(params)
    for plan, mask in zip(plans.leaves, plans.column(masks, "masks"), strict=True):
        if plan.is_pruned:
            layers = [layer for _, layer in plan.rule.layers.named(plan.name, mask)]
            targets = plan.target if plan.differs else [plan.target] * len(layers)
            for layer, target in zip(layers, targets, strict=True):
                count = int(np.count_nonzero(layer))
                assert count == max(round((1 - target) * layer.size), target < 1), (model.name, plan.name, count)
                kept, size = kept + count, size + layer.size
    return f"{kept} of {size}"


def models() -> list[Traced]:
    """All models of the table."""
    return [*vision.models(), *sequences.models()]


def filled(text: str) -> str:
    """A page with its table made anew.

    Raises:
        ValueError: It does not have the two lines between which the table stands.
    """
    rows = [_HEAD, ["---"] * len(_HEAD), *map(line, models())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text, count = _BLOCK.subn(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"the page has {count} places for the table; it needs one between the two lines of comments.")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Prunes all models and writes the table; returns 1 if the page has no place for it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real_models", description=__doc__)
    parser.add_argument("--print", action="store_true", help="show what every axis is, and write nothing")
    options = parser.parse_args(arguments)
    if options.print:
        for model in models():
            print(f"{model.name}\n{read(model)}\n")
        return 0
    for model in models():
        print(f"{model.name}: {prune(model)} weights kept")
    try:
        write_whole(PAGE, filled(PAGE.read_text()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
