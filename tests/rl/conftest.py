"""Every test starts without gin bindings, and with JAX as Dopamine needs it."""

from collections.abc import Iterator

import gin
import jax
import pytest

import sparse_plugins.rl.dopamine  # noqa: F401 - repairs Dopamine before a test module imports it


@pytest.fixture(autouse=True)
def clean_gin() -> Iterator[None]:
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(autouse=True)
def rank_promotion() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):  # Dopamine's losses rely on it
        yield


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Most of the time goes into compiling the same training steps for one agent after another."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
