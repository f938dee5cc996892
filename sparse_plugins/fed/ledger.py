"""The bytes that travelled, client by client and round by round."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["DELIVERED", "Entry", "Ledger", "Total"]

DELIVERED = "ok"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one client and the server sent each other in one round.

    Attributes:
        round: Number of the round, from 0.
        client: Name of the client.
        down: Bytes of the broadcast: masks and parameters.
        up: Bytes of the client's update, changes of its mask included.
        growth: Bytes of its growth signal, sent in rounds that update masks.
        status: 'ok' if the update was used, else what became of it.
        growth_status: The same of the growth signal; empty if the client was asked for none.
    """

    round: int
    client: str
    down: int
    up: int
    growth: int
    status: str = DELIVERED
    growth_status: str = ""


@dataclasses.dataclass(frozen=True)
class Total:
    """Sums over entries.

    Attributes:
        clients: How many entries.
        down: Bytes from the server.
        up: Bytes of updates.
        growth: Bytes of growth signals, sent beside updates.
        refused: Entries whose update was not used.
    """

    clients: int
    down: int
    up: int
    growth: int
    refused: int


class Ledger:
    """A list of entries that only grows; every number in it is the length of a payload.

    Example:
        >>> ledger = Ledger()
        >>> ledger.add(Entry(round=0, client="anna", down=120, up=80, growth=10))
        >>> ledger.add(Entry(round=0, client="ben", down=120, up=0, growth=0, status="dropped out"))
        >>> ledger.total()
        Total(clients=2, down=240, up=80, growth=10, refused=1)
        >>> ledger
        Ledger of 2 entries in 1 rounds: 240 bytes down, 80 up, 10 growth signals, 1 refused
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = list(entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        total, rounds = self.total(), len({entry.round for entry in self})
        sums = f"{total.down:,} bytes down, {total.up:,} up, {total.growth:,} growth signals, {total.refused:,} refused"
        return f"Ledger of {len(self):,} entries in {rounds:,} rounds: {sums}"

    def add(self, entry: Entry) -> None:
        """Appends an entry."""
        self._entries.append(entry)

    def total(self, before_round: int | None = None) -> Total:
        """Sums of all entries, or of those of earlier rounds than one."""
        chosen = [entry for entry in self if before_round is None or entry.round < before_round]
        down, up, growth = (sum(getattr(entry, field) for entry in chosen) for field in ("down", "up", "growth"))
        return Total(len(chosen), down, up, growth, sum(entry.status != DELIVERED for entry in chosen))

    def by_round(self) -> dict[int, Total]:
        """Sums of each round that has entries."""
        rounds = dict.fromkeys(entry.round for entry in self)
        grouped = {number: Ledger(entry for entry in self if entry.round == number) for number in rounds}
        return {number: ledger.total() for number, ledger in grouped.items()}

    def truncate(self, before_round: int) -> None:
        """Forgets entries of a round and all later ones, as a run does that goes on from an earlier state."""
        self._entries = [entry for entry in self if entry.round < before_round]

    def to_csv(self) -> str:
        """The entries as CSV, one a line under a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Entry)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, self))
        return text.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> "Ledger":
        """A ledger from what `to_csv` wrote; up to 0.1.0 it had no column for growth signals.

        Raises:
            ValueError: If it is not that.

        Example:
            >>> ledger = Ledger([Entry(3, "anna", 1, 2, 3)])
            >>> list(Ledger.from_csv(ledger.to_csv())) == list(ledger)
            True
        """
        column_types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Entry)}
        reader = csv.DictReader(io.StringIO(text))
        try:
            if (names := reader.fieldnames) in (list(column_types), list(column_types)[:-1]):
                return cls(_entry(row, column_types) for row in reader)
        except (TypeError, ValueError, KeyError, csv.Error) as error:
            raise ValueError(f"line {reader.line_num} of the ledger is damaged: {error}") from error
        raise ValueError(f"a ledger has the columns {', '.join(column_types)}; this file has {names}.")

    def save(self, path: str | Path) -> None:
        """Writes the CSV in one piece: a crash leaves the file before or the new one, never a half."""
        path = Path(path)
        half = path.with_name(f"{path.name}.partial")
        half.write_text(self.to_csv())
        os.replace(half, path)


def _entry(row: dict[str, Any], column_types: dict[str, Any]) -> Entry:
    missing = [name for name, value in row.items() if value is None]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}; a line has {len(row)} columns.")
    return Entry(**{name: column_types[name](value) for name, value in row.items()})
