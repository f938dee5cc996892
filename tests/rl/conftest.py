"""Every test starts without gin bindings, and with JAX as Dopamine needs it."""

from collections.abc import Iterator

import gin
import jax
import pytest

import sparse_plugins.rl.dopamine  # noqa: F401 - repairs Dopamine before a test module imports it
from tests.rl.programs import shared_programs, unshared_programs

__all__ = ["shared_programs", "unshared_programs"]


@pytest.fixture(autouse=True)
def clean_gin() -> Iterator[None]:
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(autouse=True)
def rank_promotion() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):  # Dopamine's losses rely on it
        yield
