"""CSV files to which a process appends, so that whoever stops it leaves whole lines."""

import csv
import dataclasses
import io
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments.harness.files import write_whole

T = TypeVar("T")
Line = Mapping[str, Any]


def names_of(kind: type) -> list[str]:
    """The columns of a dataclass of rows."""
    return [field.name for field in dataclasses.fields(kind)]


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


def write_rows(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """Writes the rows of a dataclass as a whole file."""
    write_whole(path, csv_text(names_of(kind), map(dataclasses.asdict, rows)))


def append_rows(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """Appends the rows of a dataclass, as `append_lines`."""
    append_lines(path, names_of(kind), map(dataclasses.asdict, rows))


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Reads them back; what is empty, or a column of a later version, gets the default of its field.

    Raises:
        ValueError: a column is none of this kind of rows, or a number is none; the message names the file.
    """
    hints = typing.get_type_hints(kind)
    parse = {name: (typing.get_args(hint) or (hint,))[0] for name, hint in hints.items()}  # of `int | None`, int
    lines = read_lines(path)
    if lines and (unknown := set(lines[0]) - set(parse)):
        raise ValueError(
            f"{path} has the columns {', '.join(map(str, unknown))}, which {kind.__module__} does not know: it has"
            f" {', '.join(parse)}. Was it written by a later version?"
        )
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            rows.append(kind(**{name: parse[name](text) for name, text in line.items() if text}))
        except (TypeError, ValueError) as error:
            raise _damaged(path, number, error) from error
    return rows


def joined(parts: Iterable[Path]) -> str:
    """The lines of files together, as one file; nothing if there is no line."""
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
