"""From stored rows to Markdown and pictures; here the Markdown tables, which also read well as plain text."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first to the left, all others to the right."""
    widths = [max(2, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def percent(fraction: float) -> str:
    """A fraction as a percentage, with two decimals where they are needed."""
    return f"{100 * fraction:.2f}".rstrip("0").removesuffix(".") + " %"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return " | ".join(["| " + first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"
