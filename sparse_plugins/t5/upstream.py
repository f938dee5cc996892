"""T5X, which is on no package index, imported when something needs it."""

import importlib
import types

__all__ = ["import_t5x"]


def import_t5x(module: str) -> types.ModuleType:
    """A module of T5X.

    Args:
        module: Its name inside `t5x`.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If T5X or something it imports is not installed.

    Example:
        >>> import_t5x("no_such_module")
        Traceback (most recent call last):
        ModuleNotFoundError: ...
    """
    try:
        return importlib.import_module(f"t5x.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"T5X is needed here, and {error.name!r} is not installed. T5X is not on PyPI: "
            'pip install "t5x @ git+https://github.com/google-research/t5x"',
            name=error.name,
        ) from error
