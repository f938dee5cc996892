"""Import Dopamine 4.1.2 on current JAX, next to packages that it forgets to declare.

`import_dopamine` makes the few changes listed in `PATCHES`, each only for as long as the import takes or only inside
Dopamine's own registry, so that no other library sees a difference. A patch does nothing once upstream is fixed.
Only `sparse_plugins.rl.dopamine` calls it.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

from sparse_plugins.missing import explain_import_error

__all__ = ["PATCHES", "Patch", "import_dopamine"]


@dataclasses.dataclass(frozen=True)
class Patch:
    """One thing that keeps Dopamine from running as released.

    Attributes:
        name: What is missing or wrong.
        version: The release from which on it fails.
        reason: What fails, and what the patch does.
        during_import: Context in which Dopamine is imported; it undoes itself.
        after_import: Called once Dopamine is there; returns whether it changed anything.
    """

    name: str
    version: str
    reason: str
    during_import: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    after_import: Callable[[], bool] = lambda: False


def import_dopamine() -> types.ModuleType:
    """Imports Dopamine's JAX agents and runners, ready for current JAX.

    Can be called any number of times; only the first costs anything (about ten seconds, most of it TensorFlow).

    Returns:
        The module `dopamine.discrete_domains.run_experiment`, whose imports load all classical agents.

    Raises:
        ImportError: If Dopamine or something it imports is not installed or cannot be imported.
    """
    loaded = sys.modules.get("dopamine.discrete_domains.run_experiment")
    try:
        runners = loaded or _import_patched()
    except ImportError as error:
        brought = ("dopamine", "absl", "ale_py", "flax", "gin", "gymnasium", "tensorboard", "tqdm")
        raise explain_import_error(
            error, "sparse_plugins.rl.dopamine", brought, '"sparse-plugins[dopamine]"'
        ) from error
    for patch in PATCHES:
        patch.after_import()
    return runners


def _import_patched() -> types.ModuleType:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow is only there for summaries and files
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # deprecations inside TensorFlow and its satellites
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # gym's farewell, printed at every import
        for patch in PATCHES:
            stack.enter_context(patch.during_import())
        importlib.import_module("dopamine.jax.continuous_networks")
        return importlib.import_module("dopamine.discrete_domains.run_experiment")


@contextlib.contextmanager
def _baselines() -> Iterator[None]:
    names = ("baselines", "baselines.common", "baselines.common.atari_wrappers")
    if names[0] in sys.modules or importlib.util.find_spec(names[0]) is not None:
        yield
        return
    package, common, wrappers = (types.ModuleType(names[0]), types.ModuleType(names[1]), _Absent(names[2]))
    package.common, common.atari_wrappers = common, wrappers  # type: ignore[attr-defined]
    package.__path__, common.__path__ = [], []
    stand_ins = dict(zip(names, (package, common, wrappers), strict=True))
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


class _Absent(types.ModuleType):
    """Stands for a module that is not installed until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"{self.__name__}.{name} belongs to OpenAI's baselines, which is not installed; Dopamine uses it for "
            "use_ppo_preprocessing=True alone. Leave that out, or install baselines."
        )


@contextlib.contextmanager
def _aval_mappings() -> Iterator[None]:
    xla = importlib.import_module("jax.interpreters.xla")
    if hasattr(xla, "pytype_aval_mappings"):
        yield
        return
    xla.pytype_aval_mappings = jax._src.core.pytype_aval_mappings  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del xla.pytype_aval_mappings


_TWINS = ("dqn_agent.identity_epsilon", "dqn_agent.linearly_decaying_epsilon")


def _forget_tensorflow_twins() -> bool:
    from gin import config as gin_config

    registry = gin_config._REGISTRY
    twins = [
        f"dopamine.tf.agents.dqn.{name}"
        for name in _TWINS
        if {f"dopamine.{framework}.agents.dqn.{name}" for framework in ("tf", "jax")}
        <= set(registry.matching_selectors(name))
    ]
    for selector in twins:
        registry.pop(selector)
    return bool(twins)


PATCHES: tuple[Patch, ...] = (
    Patch(
        "baselines",
        "dopamine-rl 4.1.0",
        "atari_lib imports OpenAI's baselines, which Dopamine does not declare and uses for one option only: while "
        "Dopamine is imported a module stands in that raises when it is used.",
        during_import=_baselines,
    ),
    Patch(
        "jax.interpreters.xla.pytype_aval_mappings",
        "jax 0.7.0",
        "TensorFlow Probability 0.25 registers a type in this table, which JAX has made private: while Dopamine is "
        "imported the old name is there.",
        during_import=_aval_mappings,
    ),
    Patch(
        " and ".join(_TWINS),
        "dopamine-rl 4.1.0",
        "gin finds these functions of the JAX agents under the same names in the TensorFlow agents, so that 22 of "
        "Dopamine's own configurations do not parse: the TensorFlow twins, which do the same, leave gin's registry.",
        after_import=_forget_tensorflow_twins,
    ),
)
