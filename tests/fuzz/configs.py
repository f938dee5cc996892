"""Configurations of updaters as a fuzz target: values as JSON and as gin have them, for every key.

An input is lines of `key = value`. gin files as a whole are programs, which import modules and call what they name;
only their values are tried here, without references to anything.
"""

import contextlib
import importlib
import json
from collections.abc import Iterator
from tokenize import TokenError
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins import core

_REFUSED_BY_GIN = (ValueError, SyntaxError, TypeError, IndexError, MemoryError, RecursionError, TokenError)
PARAMS = {"head": jax.ShapeDtypeStruct((4, 4), jnp.float32), "w": jax.ShapeDtypeStruct((8, 16), jnp.float32)}
GRADUAL = "sparsity = 0.8\nupdate_freq = 10\nupdate_start_step = 20\nupdate_end_step = 100\n"


def corpus() -> Iterator[bytes]:
    """Every algorithm, structure and kind of rule."""
    for name in core.all_algorithm_names():
        yield f'algorithm = "{name}"\n{GRADUAL}'.encode()
    for structure in ("unstructured", "2:4", "nm_1,4", "4x4", "block_2,2", "channel_-1", "fan_in_-1"):
        yield f'algorithm = "magnitude"\nsparsity = 0.5\nsparsity_type = "{structure}"\n'.encode()
    yield b'algorithm = "rigl"\ndist_type = "uniform"\nrules = [["head", null], ["w", 0.5]]\n' + GRADUAL.encode()
    yield (
        b"algorithm = 'set'\nrules = [('head', None)]\ndrop_schedule = 'linear'\ndrop_fraction = 0.2\n"
        + GRADUAL.encode()
    )
    yield b'algorithm = "magnitude"\nsparsity_type = [["head", "2:4"]]\nsparsity = 0.5\nstep_unit = "frame"\n'
    yield b'algorithm = "magnitude"\nsparsity = 0.5\nuse_packed_masks = "zeros"\nis_sparse_gradients = true\n'


def values(text: str) -> Iterator[Any]:
    """What JSON and gin read from a text; nothing if it is none of theirs."""
    with contextlib.suppress(ValueError, RecursionError):
        yield json.loads(text)
    if "@" not in text and "%" not in text:
        with contextlib.suppress(
            ValueError, SyntaxError, TypeError, IndexError, MemoryError, RecursionError, TokenError
        ):
            yield importlib.import_module("gin").config.parse_value(text)


def check(data: bytes) -> None:
    """Builds an updater and its plan.

    Raises:
        AssertionError: If a sparsity is none.
        Exception: Anything but TypeError and ValueError: a finding.
    """
    lines = [line.partition("=") for line in data.decode(errors="replace").splitlines()]
    read = {key.strip(): [*values(text.strip())] for key, _, text in lines}
    for choice in (0, -1):
        given = {key: found[choice] for key, found in read.items() if found}
        try:
            updater = core.create_updater_from_config(given)
            targets = updater.target_sparsities(PARAMS)
            jax.eval_shape(updater.init_state, PARAMS)
        except (TypeError, ValueError):
            continue
        assert all(target is None or 0 <= target <= 1 for target in jax.tree.leaves(targets)), targets
