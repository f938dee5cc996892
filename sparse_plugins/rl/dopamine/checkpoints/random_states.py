"""The states of NumPy's random generators as numbers, and back into a generator that is there already."""

from typing import Any

import numpy as np

from sparse_plugins.core.storage.values import fields, refuse, stored_array, whole

__all__ = ["random_state", "set_random_state"]

_WORD, _WIDE = (1 << 32) - 1, (1 << 128) - 1
_WORDS = 624  # of the Mersenne Twister


def random_state(generator: Any) -> dict[str, Any]:
    """What `set_random_state` needs.

    Args:
        generator: A `Generator` or `RandomState` of NumPy, with PCG64 or MT19937.

    Raises:
        TypeError: If it has other bits.

    Example:
        >>> generator, other = np.random.default_rng(0), np.random.default_rng(1)
        >>> state = random_state(generator)
        >>> set_random_state(other, state, "the generator")
        >>> bool(other.integers(1 << 60) == generator.integers(1 << 60))
        True
    """
    state = generator.get_state(legacy=False) if _is_legacy(generator) else generator.bit_generator.state
    name = state["bit_generator"]
    if name == "PCG64":
        return {"bits": name, **state["state"], "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}
    if name == "MT19937":
        words = {"key": np.asarray(state["state"]["key"], np.uint32), "pos": int(state["state"]["pos"])}
        normal = {"has_gauss": int(state["has_gauss"]), "gauss": float(state["gauss"])} if "gauss" in state else {}
        return {"bits": name, **words, **normal}
    raise TypeError(f"random numbers come from {name}; allowed are PCG64 and MT19937, as in numpy.random.default_rng.")


def set_random_state(generator: Any, value: Any, what: str) -> None:
    """Lets a generator go on from a state; generators that others share stay shared.

    Args:
        generator: With the bits that the state is of.
        value: What `random_state` gave, as read from a file.
        what: Its place, for the message.

    Raises:
        DamagedFileError: If it is no state of such a generator. NumPy itself believes any position in the words of a
            Mersenne Twister, and reads there.
    """
    expected = random_state(generator)
    found = dict(zip(expected, fields(value, tuple(expected), what), strict=True))
    if found["bits"] != expected["bits"]:
        refuse(f"{what}/bits", found["bits"], expected["bits"])
    if expected["bits"] == "PCG64":
        numbers = {name: whole(found[name], 0, _WIDE, f"{what}/{name}") for name in ("state", "inc")}
        rest = {
            "has_uint32": whole(found["has_uint32"], 0, 1, what),
            "uinteger": whole(found["uinteger"], 0, _WORD, what),
        }
        generator.bit_generator.state = {"bit_generator": "PCG64", "state": numbers, **rest}
        return
    key = (
        found["key"]
        if isinstance(found["key"], np.ndarray)
        else stored_array(found["key"], "uint32", (_WORDS,), f"{what}/key")
    )
    words = {"key": key, "pos": whole(found["pos"], 0, _WORDS, f"{what}/pos")}
    state = {"bit_generator": "MT19937", "state": words}
    if not _is_legacy(generator):
        generator.bit_generator.state = state
        return
    gauss = found["gauss"] if isinstance(found["gauss"], float) else refuse(f"{what}/gauss", found["gauss"], "a float")
    generator.set_state({**state, "has_gauss": whole(found["has_gauss"], 0, 1, f"{what}/has_gauss"), "gauss": gauss})


def _is_legacy(generator: Any) -> bool:
    return isinstance(generator, np.random.RandomState)
