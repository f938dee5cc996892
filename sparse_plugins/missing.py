"""What to say when an optional library cannot be imported."""

import importlib.util

__all__ = ["explain_import_error"]


def explain_import_error(error: ImportError, user: str, libraries: tuple[str, ...], install: str) -> ImportError:
    """The error again, with what to install.

    A library that is missing is told from one that is there and imports another that is not: installing the first again
    would not help.

    Args:
        error: What an import raised.
        user: What needs the libraries.
        libraries: The top-level modules that `install` brings.
        install: What to give pip.

    Returns:
        A `ModuleNotFoundError` or an `ImportError`, as `error` is one, to be raised from it.

    Example:
        >>> absent = ModuleNotFoundError("No module named 'agents'", name="agents")
        >>> print(explain_import_error(absent, "the demo", ("agents",), "'demo[agents]'"))
        the demo needs agents, which is not installed; run: pip install 'demo[agents]'
        >>> absent = ModuleNotFoundError("No module named 'sixth'", name="sixth.moves")
        >>> print(explain_import_error(absent, "the demo", ("agents",), "'demo[agents]'"))
        the demo needs sixth, which agents or something else it needs imports and did not bring; run: pip install sixth,
        or the package that holds it
    """
    if not isinstance(error, ModuleNotFoundError):
        return ImportError(f"{user} needs {libraries[0]}, and the import failed: {error}", name=error.name)
    name = error.name or ""
    missing = name.partition(".")[0]
    if importlib.util.find_spec(missing) is not None:
        found = f"{user}: the installed {missing} has no {name}, so it is another release; run: pip install {install}"
    elif missing in libraries:
        found = f"{user} needs {missing}, which is not installed; run: pip install {install}"
    else:
        found = (
            f"{user} needs {missing}, which {libraries[0]} or something else it needs imports and did not bring; run: "
            f"pip install {missing}, or the package that holds it"
        )
    return ModuleNotFoundError(found, name=name)
