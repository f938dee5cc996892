"""Updaters in words: what `print` shows of one, and what `help` says of its class."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparse_plugins.core.transform.hooks import UpdaterHooks

__all__ = ["FieldsSignature", "ReadablePartial", "described", "inherit_meanings", "readable"]


_SECTION = re.compile(r"^(Attributes|Raises|Example|Source):", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+): .*(?:\n      .*)*", re.MULTILINE)


def readable(value: Any) -> str:
    """A value of a field as somebody would write it, without addresses of functions.

    Example:
        >>> from sparse_plugins import core
        >>> readable(functools.partial(core.erk, sparsity=0.9, filter_fn=core.kernels_only))
        'erk(sparsity=0.9, filter_fn=kernels_only)'
    """
    if isinstance(value, functools.partial):
        keywords = (f"{name}={readable(given)}" for name, given in value.keywords.items())
        given = ", ".join([*map(readable, value.args), *keywords])
        return f"{readable(value.func)}({given})" if given else readable(value.func)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        inside = ", ".join(map(readable, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{readable(key)}: {readable(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, jax.core.Tracer):
        return f"a traced {value.dtype}{list(value.shape)}"
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_data(value).tolist()}"
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"array {value.tolist()}"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__.rpartition(".<locals>.")[2]
    return repr(value)


class ReadablePartial(functools.partial):
    """A partial that `help` shows as the call it is, without the address of its function.

    Example:
        >>> from sparse_plugins import core
        >>> ReadablePartial(core.erk, sparsity=0.9)
        erk(sparsity=0.9)
    """

    def __repr__(self) -> str:
        return readable(self)


class FieldsSignature:
    """The signature of a class that `help` shows: fields and defaults; the types stand with `__init__`.

    Example:
        >>> from sparse_plugins import core
        >>> str(inspect.signature(core.RigL)).partition(", sparsity_type")[0]
        "(scheduler=NoUpdateSchedule(step_unit='optimizer step'), skip_gradients=True, is_sparse_gradients=True"
    """

    def __get__(self, instance: Any, updater_class: type) -> inspect.Signature:
        fields = list(inspect.signature(updater_class.__init__).parameters.values())[1:]  # type: ignore[misc]
        return inspect.Signature(
            [field.replace(annotation=field.empty, default=_named(field.default)) for field in fields]
        )


def _named(default: Any) -> Any:
    """A default, or if it is a function one that shows its name without its address."""
    return ReadablePartial(default) if inspect.isfunction(default) else default


def described(updater: UpdaterHooks) -> str:
    """An updater as the call that makes it, with the fields that are not as the class has them.

    Args:
        updater: An updater.

    Example:
        >>> from sparse_plugins import core
        >>> print(core.build_updater("rigl", sparsity=0.9, total_steps=1_000))
        RigL(scheduler=PeriodicSchedule(step_unit='optimizer step', update_freq=10, update_start_step=0,
            update_end_step=750), sparsity_distribution_fn=erk(sparsity=0.9), rescale=True,
            drop_fraction_fn=CosineDrop(fraction=0.3, end_step=750))
    """
    fields = [field for field in dataclasses.fields(updater) if field.init and field.repr]  # type: ignore[arg-type]
    values = {field.name: readable(getattr(updater, field.name)) for field in fields}
    defaults = {field.name: readable(field.default) for field in fields}
    if updater.topk_fn is not None and not hasattr(updater.topk_fn, "__qualname__"):
        values.pop("topk_fn", None)  # the structure's own, which nobody gave
    said = (f"{name}={value}" for name, value in values.items() if value != defaults[name])
    return f"{type(updater).__name__}({', '.join(said)})"


def inherit_meanings(updater_class: type) -> None:
    """Puts the meanings of all fields, inherited ones too, before what else the docstring of a class explains.

    Args:
        updater_class: A class of updaters, whose docstring is changed.

    Example:
        >>> from sparse_plugins import core
        >>> text = core.RigL.__doc__
        >>> text.index("scheduler: When masks") < text.index("drop_fraction_fn: From a step") < text.index("Example:")
        True
    """
    text = inspect.cleandoc(vars(updater_class).get("__doc__") or "")
    if not text:
        return
    entries: dict[str, str] = {}
    for base in reversed(updater_class.__mro__):
        doc = text if base is updater_class else inspect.cleandoc(vars(base).get("__doc__") or "")
        entries |= {match[1]: match[0] for match in _ENTRY.finditer(_section(doc, "Attributes"))}
    names = _field_names(updater_class)
    before, after = _around_fields(text)
    meanings = "\n".join(entry for name, entry in entries.items() if name in names)
    updater_class.__doc__ = f"{before}Attributes:\n{meanings}\n\n{after}".rstrip() + "\n"


def _field_names(updater_class: type) -> set[str]:
    """What a class is built with, before `dataclass` has seen it."""
    bases = filter(dataclasses.is_dataclass, updater_class.__mro__[1:])
    names = {field.name for base in bases for field in dataclasses.fields(base) if field.init}
    for name, annotation in inspect.get_annotations(updater_class).items():
        given = vars(updater_class).get(name)
        is_given = "ClassVar" not in str(annotation) and getattr(given, "init", True)
        names = names | {name} if is_given else names - {name}
    return names


def _section(text: str, name: str) -> str:
    """What stands below a heading of a docstring."""
    parts = _SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(name, "")


def _around_fields(text: str) -> tuple[str, str]:
    """A docstring before its fields and after them."""
    first = _SECTION.search(text)
    if first is None:
        return f"{text.rstrip()}\n\n", ""
    if first[1] != "Attributes":
        return text[: first.start()], text[first.start() :]
    second = _SECTION.search(text, first.end())
    return text[: first.start()], "" if second is None else text[second.start() :]
