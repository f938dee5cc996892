"""The studies of T5.

Presets: `short` takes minutes on two cores; `long` is the same data, larger and longer, for an accelerator; `paper` has
JaxPruner's settings (Lee et al., 2023) on C4, but bytes for tokens and gradients clipped by their norm.
"""

import functools
from typing import Any

from experiments.common.supervised.probes import memory
from experiments.common.supervised.studies import DENSE_CELL, algorithm_cells, presets, storage_cells, structure_cells
from experiments.harness.study import Question, Variants
from experiments.t5.budgets import PARTS, favouring

FACTOR = 1.5
OUTPUT = "logits_dense/kernel"

_TINY = {"batch_size": 16, "steps": 500, "learning_rate": 3e-3}
_LONG = {"batch_size": 128, "steps": 10_000, "length": 256, "seeds": (0, 1, 2, 3, 4), "evaluations": 30}
_BASE = {
    **{"data": "c4", "model": "base", "length": 568, "batch_size": 256, "steps": 100_000, "learning_rate": 1e-4},
    **{"warmup": 0.01, "change_from": 0.25, "change_until": 0.75, "changes": 50, "evaluations": 50},
}


_presets = functools.partial(presets, _TINY, _LONG, _BASE)


def _budget_cells(settings: Any, shapes: Any) -> Variants:
    named = [("uniform", None), *((f"denser {part}", part) for part in PARTS)]
    rules = {name: favouring(shapes, part, FACTOR, settings.sparsity) for name, part in named}
    common = {"algorithm": "magnitude", "dist_type": "uniform"}
    return {**DENSE_CELL, **{name: {**common, "rules": layer_rules} for name, layer_rules in rules.items()}}


STUDIES = {
    "algorithms": Question(
        "Algorithms on T5",
        "as published for T5 base at 80 % (JaxPruner, loss: dense 2.58, magnitude_ste 2.71, magnitude 2.95, rigl 3.12,"
        " set 3.13, static 3.17, random 3.29): dense first, then magnitude_ste, magnitude, and rigl, set and static"
        " together.",
        algorithm_cells(("magnitude_ste", "magnitude", "rigl", "set", "static_sparse")),
        _presets(distribution="erk"),
    ),
    "budgets": Question(
        f"Budgets of equal size on T5: a part with {FACTOR} times the density, against uniform",
        "little between them (below 0.03 in loss); denser attention a little ahead of uniform, denser embeddings"
        " behind it, because most rows of a table of bytes are rarely read.",
        _budget_cells,
        _presets(),
    ),
    "structures": Question(
        "Structures at one half on T5",
        "unstructured and 2:4 level with dense, 4x4 blocks behind them, channels last.",
        structure_cells([(OUTPUT, None)]),
        _presets(sparsity=0.5),
    ),
    "memory": Question(
        "Bytes of masks while training T5, and of what is exported",
        "masks take 1/4 of their parameters' bytes as uint8, 1/32 packed and nothing as zeros; files hold the kernels'"
        " density plus 1/32 of their dense bytes; BCOO of matrices takes three times what it keeps.",
        storage_cells(),
        _presets(steps=100, evaluations=1),
        memory,
    ),
}
