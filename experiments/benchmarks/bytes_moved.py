"""Bytes that a compiled program reads and writes: what bounds a step that computes little for every number."""

import math
import re

__all__ = ["bytes_moved"]

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"%([\w.\-]+) = (\w+)\[([\d,]*)\]")
_KERNEL = re.compile(
    r"^\s+(?:ROOT )?(%[\w.\-]+) = \w+\[[\d,]*\]\S* (?!parameter|constant|get-tuple|bitcast)[\w\-]+\((.*?)\)"
)
_BRANCHES = re.compile(r"conditional\(.*branch_computations=\{(%[\w.\-]+),")


def bytes_moved(program: str) -> int:
    """Bytes of all arrays that the kernels of a program take and return, each as often as it is taken.

    Of a branch those of its first side count, on which nothing is due; loops count once. Caches make it less than what
    a processor asks of its memory: it is a bound for arrays that none of them holds.

    Args:
        program: A compiled program as text, of `compiled.as_text()`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> compiled = jax.jit(lambda a, b: a * 2 + b).lower(jnp.ones(10), jnp.ones(10)).compile()
        >>> bytes_moved(compiled.as_text())
        120
    """
    sizes = {f"%{name}": _size(dtype, shape) for name, dtype, shape in _ARRAY.findall(program)}
    entry = program[program.index("\nENTRY ") :]
    computations = [entry, *(_computation(program, name) for name in _BRANCHES.findall(entry))]
    kernels = [match for lines in computations for match in map(_KERNEL.match, lines.splitlines()) if match]
    return sum(
        sum(sizes.get(array, 0) for array in [kernel[1], *re.findall(r"%[\w.\-]+", kernel[2])]) for kernel in kernels
    )


def _size(dtype: str, shape: str) -> int:
    return _BYTES.get(dtype, 4) * math.prod(int(length) for length in shape.split(",") if length)


def _computation(program: str, name: str) -> str:
    start = program.index(f"\n{name} (")
    return program[start : program.index("\n}", start)]
