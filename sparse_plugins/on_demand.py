"""Public names that are loaded when somebody asks for them, so that a package is as light as what is used of it."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["load_on_demand"]


def load_on_demand(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a package takes for its `__getattr__` and `__dir__`.

    Args:
        package: Its `__name__`.
        places: From each name to the module that defines it, or that is meant by it if it ends so.

    Returns:
        Both functions. A name is looked up once; whoever asks for one whose library is missing gets that ImportError.

    Example:
        >>> get, names = load_on_demand("sparse_plugins", {"core": "sparse_plugins.core"})
        >>> get("core").__name__, "core" in names()
        ('sparse_plugins.core', True)

    Source: PEP 562.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(places[name])
        value = module if places[name].endswith(f".{name}") else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names
