"""T5X, which is on no package index, imported when something needs it."""

import importlib
import types

from sparse_plugins.missing import explain_import_error

__all__ = ["import_t5x"]


def import_t5x(module: str) -> types.ModuleType:
    """A module of T5X.

    Args:
        module: Its name inside `t5x`.

    Returns:
        The module.

    Raises:
        ImportError: If T5X or something it imports is not installed or cannot be imported.

    Example:
        >>> import_t5x("no_such_module")
        Traceback (most recent call last):
        ModuleNotFoundError: ...
    """
    try:
        return importlib.import_module(f"t5x.{module}")
    except ImportError as error:
        source = '"t5x @ git+https://github.com/google-research/t5x" (it is on no package index)'
        raise explain_import_error(error, "sparse_plugins.t5", ("t5x",), source) from error
