"""The session is stricter than a user's, and the same every time."""

import gc
import os
import tempfile
from collections.abc import Iterator

import hypothesis
import jax
import pytest

from tests.quick import compile_fully, compile_quickly, forget_context, share_contexts

jax.config.update("jax_numpy_rank_promotion", "raise")

# A compilation in one example of many would break a deadline; a failure on one machine should be one on every other.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Tests of sharding make their devices in a process of their own; this one stays as users have it."""
    if (count := jax.local_device_count()) != 1:
        raise pytest.UsageError(f"the suite needs one JAX device in a process, found {count}: unset XLA_FLAGS")


def pytest_configure(config: pytest.Config) -> None:
    """Compiles a program that takes long once in a session: many come again, in other closures and other tests.

    Processes that tests start share a folder of their own: one that is killed may leave half a program there.
    """
    patches = pytest.MonkeyPatch()
    share_contexts(patches)
    config.add_cleanup(patches.undo)
    folder = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", f"{folder.name}/here")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder.name}/started"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


def pytest_collection_finish() -> None:
    """What is imported stays: strategies of Flower collect garbage after every reply, and would look at all of it."""
    gc.freeze()


# First, because they stay in one process and so take longest: Dopamine is imported, and its steps compiled, once.
_DOPAMINE = ("tests/rl/", "tests/experiments/test_rl", "sparse_plugins/rl/dopamine/", "sparse_plugins/rl/train.py")
_PURE = ("plasticity", "redo.", "redo_growth", "activations")


def _is_of_dopamine(item: pytest.Item) -> bool:
    return item.nodeid.startswith(_DOPAMINE) and not any(f"test_{name}" in item.nodeid for name in _PURE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of Dopamine in one process, and those of any other file: two would both compile its programs."""
    for item in items:
        if _is_of_dopamine(item):
            item.add_marker(pytest.mark.xdist_group("dopamine"))
        elif item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: not _is_of_dopamine(item))


# Most time goes into compiling, and what is checked is mostly what programs do, however they are compiled. As users
# have them are the searches and sums that fast machine code could round or order otherwise, what is stored and read
# again, and many devices.
_FULLY_COMPILED = (
    "tests/checkpoints/",
    "tests/integration/",
    "tests/t5/test_t5_sharding",
    "tests/wire/",
    *(f"tests/test_{name}" for name in ("quick", "regressions", "resume", "shard")),
    *(f"tests/fed/test_{name}" for name in ("im2col", "quantizers", "robust")),
    *(
        f"tests/core/test_{name}"
        for name in ("counts", "exact_sums", "masks", "schedules", "structures", "topk", "zero_masks")
    ),
)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leaves out what XLA does for speed, also in processes that a test starts: bits depend on it."""
    if request.node.nodeid.startswith(_FULLY_COMPILED):
        yield
        return
    with pytest.MonkeyPatch.context() as patches:
        compile_quickly(patches)
        yield


@pytest.fixture
def full_compilation(quick_compilation: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test among these that compares the bits of two programs."""
    compile_fully(monkeypatch)


def pytest_make_parametrize_id(val: object) -> str | None:
    """A payload is too long for the name of its test."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets go of what a file has compiled: little of it comes again, and garbage collection would look at all of it."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
        forget_context()
