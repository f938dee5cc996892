"""Reading Dopamine's checkpoints, which are pickles, without running what a stranger may have put into them.

A pickle can call anything that can be imported. Here it may build arrays, random generators, named tuples, spaces and
the states of emulators; whatever else it names is refused before it is called, and nothing is imported.
"""

import contextlib
import io
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax

__all__ = ["UnsafeCheckpointError", "allow_in_checkpoints", "dumps", "loads", "of_replay"]

_ALLOWED = {
    "ale_py._ale_py": ("ALEState",),
    "builtins": ("bytearray", "complex", "frozenset", "range", "set", "slice"),
    "collections": ("OrderedDict", "defaultdict", "deque"),
    "dopamine.jax.replay_memory.elements": ("ReplayElement",),
    "jax._src.array": ("_reconstruct_array",),
    "jax._src.tree_util": ("default_registry",),
    jax.tree_util.PyTreeDef.__module__: ("PyTreeDef",),
    "ml_dtypes": ("bfloat16", "float8_e4m3fn", "float8_e5m2"),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy.random._pickle": ("__bit_generator_ctor", "__generator_ctor", "__randomstate_ctor"),
    "numpy.random.bit_generator": ("SeedSequence", "__pyx_unpickle_SeedSequence"),
    **{f"numpy.random.{module}": (name,) for module, name in (("_pcg64", "PCG64"), ("_mt19937", "MT19937"))},
}
_OWN: set[tuple[str, str]] = set()


class UnsafeCheckpointError(RuntimeError):
    """A checkpoint names something that reading it must not call."""


def allow_in_checkpoints(*types: type) -> None:
    """Lets checkpoints hold objects of further classes, such as the state of an environment of your own.

    Args:
        types: Classes; reading a checkpoint may then build instances of them.

    Example:
        >>> import fractions
        >>> allow_in_checkpoints(fractions.Fraction)
        >>> loads(pickle.dumps(fractions.Fraction(1, 3)))
        Fraction(1, 3)
    """
    _OWN.update((kind.__module__, kind.__qualname__) for kind in types)


def dumps(data: Any) -> bytes:
    """A pickle that `loads` reads, which is found out at once and not when a run has to go on.

    Args:
        data: What to write.

    Returns:
        The pickle.

    Raises:
        UnsafeCheckpointError: `loads` would refuse it.
    """
    content = pickle.dumps(data)
    loads(content)
    return content


def loads(content: bytes) -> Any:
    """Reads a pickle of numbers, containers and the few classes that checkpoints are made of.

    Args:
        content: The pickle.

    Returns:
        What was pickled.

    Raises:
        UnsafeCheckpointError: It names a class or function beyond these.

    Example:
        >>> loads(pickle.dumps({"step": 3}))
        {'step': 3}
        >>> loads(pickle.dumps(print))
        Traceback (most recent call last):
        sparse_plugins.rl.dopamine.safe_pickle.UnsafeCheckpointError: a checkpoint names builtins.print, ...
    """
    return _Unpickler(io.BytesIO(content)).load()


@contextlib.contextmanager
def of_replay() -> Iterator[None]:
    """For a while, Dopamine's replay reads and writes the pickles inside its own files with `loads` and `dumps`."""
    from dopamine.jax.replay_memory import accumulator, replay_buffer

    ours, modules = types.SimpleNamespace(loads=loads, dumps=dumps), (accumulator, replay_buffer)
    kept = [vars(module)["pickle"] for module in modules]
    try:
        for module in modules:
            vars(module)["pickle"] = ours
        yield
    finally:
        for module, own in zip(modules, kept, strict=True):
            vars(module)["pickle"] = own


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()) or (module, name) in _OWN or _is_plain(module, name):
            return super().find_class(module, name)
        raise UnsafeCheckpointError(
            f"a checkpoint names {module}.{name}, which is not among what checkpoints are made of. If that is a class "
            "of yours, call sparse_plugins.rl.dopamine.allow_in_checkpoints with it before the run starts or goes on; "
            "if the file is from someone else, do not read it."
        )


def _is_plain(module: str, name: str) -> bool:
    """Whether it is a named tuple or a space, of a module that is in use anyway."""
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and (
        (issubclass(found, tuple) and hasattr(found, "_fields")) or found.__module__.startswith("gymnasium.spaces.")
    )
