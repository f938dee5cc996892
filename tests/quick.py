"""Programs that compile in a third of the time, without what makes them fast: most of the suite is compiling."""

import functools

import jax
import pytest
from jax._src import compiler
from jax._src.interpreters import mlir

# Small programs are not worth parts that threads compile side by side. The last is the older way to write loops in
# machine code; jax 0.11 has it no more.
OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1} | (
    {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
)
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())

quick_jit = functools.partial(jax.jit, compiler_options=OPTIONS)
thorough = functools.partial(pytest.param, marks=pytest.mark.thorough)  # a row that test-core leaves to `make test`

options_as_users_have_them = compiler.get_compile_options


def _quickly(*args, env_options_overrides=None, **keywords):
    return options_as_users_have_them(
        *args, env_options_overrides={**OPTIONS, **(env_options_overrides or {})}, **keywords
    )


def compile_quickly(patches: pytest.MonkeyPatch) -> None:
    """Also whatever a framework compiles, and in processes that a test starts.

    The options of `jax.jit` reach no program of a framework, XLA's flags are read once in a process, and
    `jax_disable_most_optimizations` leaves the fusion emitters: a private function of jax it is. tests/test_quick.py
    fails when jax calls it no more.
    """
    patches.setattr(compiler, "get_compile_options", _quickly)
    patches.setenv("XLA_FLAGS", FLAGS)


def compile_fully(patches: pytest.MonkeyPatch) -> None:
    """As users have it."""
    patches.setattr(compiler, "get_compile_options", options_as_users_have_them)
    patches.delenv("XLA_FLAGS", raising=False)


new_context = mlir.make_ir_context


@functools.cache
def _shared_context():
    return new_context()


def share_contexts(patches: pytest.MonkeyPatch) -> None:
    """Lowers all programs in one context of MLIR; no setting does.

    Each gets a context of its own otherwise, which is a quarter of the time of a small program and a megabyte for as
    long as the program is kept. The bits are the same.
    """
    patches.setattr(mlir, "make_ir_context", _shared_context)


def forget_context() -> None:
    """Lets go of it: constants of programs stay in it."""
    _shared_context.cache_clear()
