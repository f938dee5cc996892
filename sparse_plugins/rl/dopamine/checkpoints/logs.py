"""What Dopamine's older logger has gathered, as one array with an index."""

from typing import Any

import numpy as np

from sparse_plugins.core.storage.array_files import DamagedFileError
from sparse_plugins.core.storage.values import fields, listed, stored_array, text, whole

__all__ = ["log_values", "read_logs"]

_NAMES = ("index", "numbers")
_LONGEST_NAME, _MOST_SERIES, _MOST_NUMBERS = 200, 1 << 17, 1 << 30


def log_values(logs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a logger holds, for `write_values`.

    Args:
        logs: By iteration and by name, lists of numbers.

    Example:
        >>> log_values({"iteration_0": {"train_average_return": [2.0]}})
        {'index': [['iteration_0', 'train_average_return', 1]], 'numbers': array([2.])}
    """
    series = [(key, name, np.asarray(found, np.float64)) for key, part in logs.items() for name, found in part.items()]
    numbers = np.concatenate([found for *_, found in series]) if series else np.zeros(0)
    return {"index": [[key, name, len(found)] for key, name, found in series], "numbers": numbers}


def read_logs(stored: Any) -> dict[str, dict[str, list[float]]]:
    """What `log_values` was given.

    Args:
        stored: What `log_values` gave, as read from a file.

    Raises:
        DamagedFileError: If it is anything else.
    """
    index, numbers = fields(stored, _NAMES, "the logs")
    numbers = stored_array(numbers, "float64", (None,), "the logs' numbers", _MOST_NUMBERS).tolist()
    logs: dict[str, dict[str, list[float]]] = {}
    begin = 0
    for row in listed(index, _MOST_SERIES, "the logs' index"):
        key, name, count = row if isinstance(row, list) and len(row) == 3 else (None, None, None)
        end = begin + whole(count, 0, len(numbers) - begin, "a length in the logs")
        names = [text(word, _LONGEST_NAME, "a name in the logs") for word in (key, name)]
        logs.setdefault(names[0], {})[names[1]] = numbers[begin:end]
        begin = end
    if begin != len(numbers):
        raise DamagedFileError("the logs have numbers beyond their index")
    return logs
