"""`python -m experiments.readme_tables`: stored rows beside the published ones, as tables of the READMEs."""

import argparse
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.harness.files import write_whole
from experiments.harness.layout import Published
from experiments.harness.tables.outcomes import Outcome, spread
from experiments.harness.tables.published import FEDERATED, MSPACMAN, RESNET50, T5_BASE, VIT_B16_90
from experiments.harness.tables.stored import read_study
from experiments.registry import LAYOUTS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
COLUMNS = {
    "dense": "dense",
    "magnitude": "magnitude",
    "global_magnitude": "global",
    "saliency": "saliency",
    "magnitude_ste": "ste",
    "rigl": "rigl",
    "set": "set",
    "static_sparse": "static",
    "random": "random",
}
STARRED = {(FEDERATED.what, "magnitude_ste")}  # tested with the dense weights behind the masks


class Pair(NamedTuple):
    """A study beside the published row that it is about.

    Attributes:
        folder: Folder of the study, in `results`.
        published: The paper's numbers.
        ours: What ours is called where rows are short.
        theirs: The same of the published row.
        what: What both are called where ours is named by its folder.
        score: Place of the measure among those of the study.
        digits: Behind the point, in the short table and in the long one.
        relative: Whether numbers are relative to dense training.
    """

    folder: str
    published: Published
    ours: str
    theirs: str
    what: str
    score: int = 0
    digits: tuple[int, int] = (1, 2)
    relative: bool = False


PAIRS = (
    Pair("fed_strokes", FEDERATED, "federated, 80%, strokes, 3 seeds, %", "published, EMNIST", "Fed. EMNIST, %"),
    Pair(
        "minatar_breakout",
        MSPACMAN,
        "DQN, 98%, MinAtar Breakout, 10 seeds, of dense",
        "published, MsPacman",
        "DQN, MsPacman, of dense",
        digits=(2, 2),
        relative=True,
    ),
    Pair(
        "vision_resnet",
        RESNET50,
        "ResNet-20, 80%, strokes, 3 seeds, %",
        "published, ResNet-50 on ImageNet",
        "ResNet-50, ImageNet, %",
    ),
    Pair(
        "vision_ste",
        VIT_B16_90,
        "ViT of 0.14 million weights, 80%, strokes, 3 seeds, %",
        "published, ViT-B/16",
        "ViT-B/16, ImageNet, 90 epochs, %",
    ),
    Pair(
        "t5_algorithms",
        T5_BASE,
        "T5 1.1 tiny, 80%, 3 seeds, loss",
        "published, T5 base on C4",
        "T5 base, C4, loss",
        score=1,
        digits=(2, 3),
    ),
)


def short_table() -> str:
    """Ours above the published rows, in few digits: for the README of the repository."""
    lines = [_line("", COLUMNS.values())]
    for pair in PAIRS:
        lines += [_line(pair.ours, _ours(pair, pair.digits[0])), _line(pair.theirs, _theirs(pair, pair.digits[0]))]
    return _table(lines)


def long_table() -> str:
    """The published rows above ours, which link to their results: for the README of `experiments`."""
    lines = [_line("row | ", COLUMNS.values())]
    for pair in PAIRS:
        link = f"[{pair.folder}](results/README.md), {100 * pair.published.sparsity:g}%"
        lines.append(_line(f"{pair.what} | published", _theirs(pair, pair.digits[1])))
        lines.append(_line(f" | {link}", _ours(pair, pair.digits[1])))
    return _table(lines)


FILES = {ROOT / "README.md": short_table, ROOT / "experiments" / "README.md": long_table}
_BLOCK = re.compile(r"(<!-- python -m experiments\.readme_tables -->\n).*?(<!-- end -->\n)", re.DOTALL)


def filled(path: Path) -> str:
    """What a README says with its table made anew.

    Raises:
        ValueError: It does not have the two lines between which the table stands.
    """
    text, count = _BLOCK.subn(lambda found: f"{found[1]}\n{FILES[path]()}\n\n{found[2]}", path.read_text())
    if count != 1:
        raise ValueError(f"{path} has {count} places for the table; it needs one between the two lines of comments.")
    return text


def _ours(pair: Pair, digits: int) -> list[str]:
    study = read_study(RESULTS / pair.folder, LAYOUTS)
    found = {outcome.cell.label: outcome for outcome in study.outcomes() if pair.published.of(outcome.cell) is not None}
    measure, dense = study.layout.scores[pair.score], 1.0
    if pair.relative:
        dense = statistics.fmean(found["dense"].values(measure))

    def cell(outcome: Outcome | None) -> str:
        if outcome is None:
            return ""
        values = outcome.values(measure)
        if pair.relative:
            return "1" if outcome.cell.is_dense else f"{statistics.fmean(values) / dense:.{digits}f}"
        return spread(values, digits)

    return [cell(found.get(name)) for name in COLUMNS]


def _theirs(pair: Pair, digits: int) -> list[str]:
    numbers = pair.published.numbers

    def cell(name: str) -> str:
        if name not in numbers:
            return ""
        if pair.relative:
            return "1" if name == "dense" else f"{numbers[name] / numbers['dense']:.{digits}f}"
        return f"{numbers[name]:.{digits}f}" + ("\\*" if (pair.published.what, name) in STARRED else "")

    return list(map(cell, COLUMNS))


def _line(first: str, cells: Iterable[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def _table(lines: Sequence[str]) -> str:
    rule = "|" + "---|" * (lines[0].count("|") - 1)
    return "\n".join([lines[0], rule, *lines[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the tables; returns 1 if a README has no place for one."""
    argparse.ArgumentParser(prog="python -m experiments.readme_tables", description=__doc__).parse_args(arguments)
    try:
        for path in FILES:
            write_whole(path, filled(path))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
