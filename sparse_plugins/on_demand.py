"""Public names that are loaded when somebody asks for them, so that a package is as light as what is used of it."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["loaders"]


def loaders(
    package: str, places: Mapping[str, str], modules: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a package takes for its `__getattr__` and `__dir__`.

    Args:
        package: Its `__name__`.
        places: From each name to the module that defines it.
        modules: From each name that stands for a module to that module.

    Returns:
        Both functions. A name is looked up once; whoever asks for one whose library is missing gets that ImportError.

    Example:
        >>> get, names = loaders("sparse_plugins", {}, {"core": "sparse_plugins.core"})
        >>> get("core").__name__, "core" in names()
        ('sparse_plugins.core', True)

    Source: PEP 562.
    """
    modules = modules or {}

    def get(name: str) -> Any:
        if name in modules:
            value = importlib.import_module(modules[name])
        elif name in places:
            value = getattr(importlib.import_module(places[name]), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        module = vars(sys.modules[package])  # without the helper modules that a package is made of
        return sorted(
            {*module.get("__all__", module), *(name for name in module if name[:2] == "__"), *places, *modules}
        )

    return get, names
