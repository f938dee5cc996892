"""CSV files to which a process appends, so that whoever stops it leaves whole lines."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.files import write_whole
from experiments.harness.layout import Row

Line = Mapping[str, Any]
_JOINED = ("results.csv", "layers.csv", "measurements.csv", "timing.csv")


def csv_text(names: Sequence[str], lines: Iterable[Line], header: bool = True) -> str:
    r"""Lines under a header; None is empty, and so is what a line lacks.

    Example:
        >>> csv_text(["a", "b"], [{"a": 1, "b": None}])
        'a,b\n1,\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def append_lines(path: Path, names: Sequence[str], lines: Iterable[Line]) -> None:
    """Appends in one write; a line that a stopped process left half is taken out before.

    Args:
        path: The file; it is made, with a header, if it is missing.
        names: Its columns.
        lines: By column; texts hold no line breaks.
    """
    if not path.exists():
        write_whole(path, csv_text(names, lines))
        return
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        if file.read() != b"\n":
            write_whole(path, _whole_lines(path) or csv_text(names, []))
    with path.open("ab") as file:
        file.write(csv_text(names, lines, header=False).encode())


def read_lines(path: Path) -> list[dict[str, str]]:
    """What a file holds, as text by column; nothing without a file. A last line without its end is left out.

    Raises:
        ValueError: a line is damaged; the message names the file and the line.
    """
    if not path.exists():
        return []
    reader = csv.reader(io.StringIO(_whole_lines(path), newline=""), strict=True)
    lines = []
    try:
        names = next(reader, [])
        for fields in reader:
            if len(fields) != len(names):
                raise csv.Error(f"it has {len(fields)} columns where the first line has {len(names)}")
            lines.append(dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise _damaged(path, reader.line_num, error) from error
    return lines


def read_rows(path: Path, columns: Mapping[str, type], needed: Iterable[str] = ()) -> list[Row]:
    """Reads lines with the types of their columns.

    Args:
        path: The file; without it there is no row.
        columns: Names and types. What is empty or missing is None, or an empty text.
        needed: Columns without which a line is damaged.

    Raises:
        ValueError: a column is not known, or a number is none; the message names the file.
    """
    lines = read_lines(path)
    if lines and (unknown := set(lines[0]) - set(columns)):
        raise ValueError(
            f"{path} has the columns {', '.join(map(str, unknown))}, which are not known: it may have"
            f" {', '.join(columns)}. Was it written by a later version?"
        )
    empty = {name: "" if column_type is str else None for name, column_type in columns.items()}
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            if missing := [name for name in needed if not line.get(name)]:
                raise ValueError(f"it has no {missing[0]}")
            rows.append(Row(**{**empty, **{name: columns[name](text) for name, text in line.items() if text}}))
        except ValueError as error:
            raise _damaged(path, number, error) from error
    return rows


def joined_files(folders: Sequence[Path]) -> dict[str, str]:
    """The files of several runs or studies as those of one, by name; of what has no line there is none.

    Args:
        folders: Folder of each.
    """
    texts = {name: _joined([folder / name for folder in folders]) for name in _JOINED}
    return {name: text for name, text in texts.items() if text}


def _joined(parts: Iterable[Path]) -> str:
    lines = [line for part in parts for line in read_lines(part)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    return csv_text(names, lines) if lines else ""


def _whole_lines(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content[: content.rfind(b"\n") + 1].decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, content[: error.start].count(b"\n") + 1, error) from error


def _damaged(path: Path, line: int, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is damaged in line {line}: {error}. Copy it back from where it is whole; what a study makes of its"
        " runs' files comes again if you remove it and --resume the study."
    )
