"""The rows of a study: how every run did as it was trained, how it ended, and what was measured of it then."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `results.csv`: an evaluation, or how a run failed.

    Attributes:
        cell: Name of the cell.
        seed: Of the run.
        step: Steps so far; of a failed run those of its last row.
        training_loss: Mean since the row before; empty in the first row.
        loss: On test data; empty where there is none.
        score: On test data; empty if the run failed.
        sparsity: Fraction of zeros in what is pruned.
        is_last: Whether it says how its run ended: 1 or 0.
        failure: Empty, or why the run ended early.
    """

    cell: str
    seed: int
    step: int
    training_loss: float | None = None
    loss: float | None = None
    score: float | None = None
    sparsity: float | None = None
    is_last: int = 0
    failure: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One line of `measurements.csv`.

    Attributes:
        cell: Name of the cell.
        seed: Of the run.
        item: What was measured, such as a layer.
        quantity: What of it.
        value: The number.
    """

    cell: str
    seed: int
    item: str
    quantity: str
    value: float
