"""Run FedJAX 0.0.17 on current JAX and NumPy, and import it without TensorFlow.

The last release of FedJAX calls names that JAX and NumPy have removed since. `import_fedjax` gives them back
to FedJAX alone: in those of its modules that use one, the global `jax`, `jnp` or `np` becomes an overlay that
forwards to the real module. JAX and NumPy themselves stay as they are, so no other library sees a difference.
`PATCHES` lists every change; an entry does nothing once FedJAX has moved on or the name works again.

FedJAX also imports TensorFlow, most of its import time, only to read and write files. Here TensorFlow is
imported when one of its attributes is first used.
"""

import contextlib
import dataclasses
import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.missing import explain_import_error

__all__ = ["PATCHES", "Patch", "apply_patch", "import_fedjax"]

_APPLIED = "_sparse_plugins_patches"  # set in a patched FedJAX module: the names already replaced there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch:
    """One name in one FedJAX module that no longer does what the module expects.

    Attributes:
        module: The FedJAX module whose globals are changed.
        name: The name as the module spells it: a library's (`jax.tree_map`) or one that the module defines.
        source: The text in the module's source that fails; where it is gone, FedJAX has been fixed.
        since: The release from which on the text fails.
        reason: What changed.
        replacement: Maps what the name refers to now (None where it is gone) to what the module gets to see.
        works: Whether what the name refers to now already serves the module.
    """

    module: str
    name: str
    source: str
    since: str
    reason: str
    replacement: Callable[[Any], Any] = dataclasses.field(repr=False)
    works: Callable[[Any], bool] = dataclasses.field(repr=False, default=lambda current: current is not None)


def import_fedjax() -> types.ModuleType:
    """Imports FedJAX, ready for current JAX and NumPy, without loading TensorFlow.

    Can be called any number of times, also after a plain `import fedjax` (which loads TensorFlow if it is
    installed). Asking `fed` for a name that needs FedJAX calls it, as importing any module of `fed.fedjax` does.

    Returns:
        The module `fedjax`.

    Raises:
        ImportError: If FedJAX, Haiku or something they import is not installed or cannot be imported.

    Example:
        >>> from sparse_plugins import fed
        >>> fedjax = fed.import_fedjax()
        >>> fedjax.tree_util.tree_weight({"w": jnp.array([1.0, 2.0])}, 3.0)["w"].tolist()
        [3.0, 6.0]
    """
    try:
        importlib.import_module("haiku")  # before TensorFlow is deferred, which concerns FedJAX only
        with _deferred_tensorflow(), warnings.catch_warnings():
            # A docstring of FedJAX spells \{ in an ordinary string; Python says so when it first compiles it.
            warnings.filterwarnings("ignore", message=".*invalid escape sequence")
            fedjax = importlib.import_module("fedjax")
    except ImportError as error:
        raise explain_import_error(error, "sparse_plugins.fed", ("fedjax", "haiku"), '"sparse-plugins[fed]"') from error
    for patch in PATCHES:
        apply_patch(patch)
    return fedjax


def apply_patch(patch: Patch) -> bool:
    """Replaces a patch's name in its module, unless that is done or no longer needed.

    Args:
        patch: The name, where it is used and what to put there.

    Returns:
        Whether the module was changed.
    """
    module = importlib.import_module(patch.module)
    library, _, attribute = patch.name.rpartition(".")
    owner = getattr(module, library) if library else module
    current = getattr(owner, attribute, None)
    applied: set[str] = vars(module).setdefault(_APPLIED, set())
    if patch.name in applied or patch.source not in inspect.getsource(module) or patch.works(current):
        return False
    if library:
        overlay = owner if isinstance(owner, _Overlay) else _Overlay(owner)
        setattr(overlay, attribute, patch.replacement(current))
        setattr(module, library, overlay)
    else:
        replacement = patch.replacement(current)
        for holder in _modules_with(attribute, current, package=patch.module.partition(".")[0]):
            setattr(holder, attribute, replacement)
    applied.add(patch.name)
    return True


def _modules_with(name: str, value: Any, package: str) -> list[types.ModuleType]:
    """The loaded modules of a package in which a name has this value: where it is defined and re-exported."""
    return [
        module
        for path, module in sys.modules.items()
        if path.partition(".")[0] == package and vars(module).get(name) is value
    ]


class _Overlay(types.ModuleType):
    """A module with some attributes of its own; all others are those of the module beneath."""

    def __init__(self, beneath: types.ModuleType) -> None:
        super().__init__(beneath.__name__)
        self._beneath = beneath

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_beneath"], name)


class _DeferredTensorFlow(types.ModuleType):
    """Stands for TensorFlow in FedJAX's modules until one of its attributes is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system and by inspection, not by users of TensorFlow
            raise AttributeError(name)
        try:
            tensorflow = importlib.import_module("tensorflow")
        except ImportError as error:
            files = "this part of FedJAX, which reads and writes files,"
            raise explain_import_error(error, files, ("tensorflow",), "tensorflow-cpu") from error
        return getattr(tensorflow, name)


@contextlib.contextmanager
def _deferred_tensorflow() -> Iterator[None]:
    if "tensorflow" in sys.modules:
        yield
        return
    sys.modules["tensorflow"] = _DeferredTensorFlow("tensorflow")
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


def _is_scalar_type(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, np.generic)


def _split_over(devices: Sequence[jax.Device]) -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(np.asarray(devices), ("clients",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("clients"))


def _put_sharded(shards: Sequence[Any], devices: Sequence[jax.Device]) -> Any:
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *shards)
    return jax.device_put(stacked, _split_over(devices))


def _put_replicated(tree: Any, devices: Sequence[jax.Device]) -> Any:
    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(devices), *jnp.shape(leaf))), tree)
    return jax.device_put(copies, _split_over(devices))


def _without_device_axis(backend: type) -> type:
    """Subclasses FedJAX's pmap backend to yield each client's results without their leading axis of one."""

    class ForEachClientPmapBackend(backend):
        __doc__ = backend.__doc__

        def __call__(
            self,
            client_init: Callable[..., Any],
            client_step: Callable[..., Any],
            client_final: Callable[..., Any],
        ) -> Callable[..., Iterable[Any]]:
            run = super().__call__(client_init, client_step, client_final)

            def run_without_device_axis(shared_input: Any, clients: Iterable[Any]) -> Iterator[Any]:
                for client_id, *results in run(shared_input, clients):
                    yield client_id, *jax.tree.map(lambda leaf: jnp.squeeze(leaf, axis=0), results)

            return run_without_device_axis

    return ForEachClientPmapBackend


PATCHES: tuple[Patch, ...] = (
    *(
        Patch(
            module=module,
            name="jax.tree_map",
            source="jax.tree_map(",
            since="jax 0.6.0",
            reason="removed; jax.tree_util.tree_map is the same function",
            replacement=lambda _: jax.tree_util.tree_map,
        )
        for module in ("fedjax.core.tree_util", "fedjax.core.regularizers")
    ),
    Patch(
        module="fedjax.core.serialization",
        name="np.issctype",
        source="np.issctype(",
        since="numpy 2.0.0",
        reason="removed; a check against np.generic takes its place",
        replacement=lambda _: _is_scalar_type,
    ),
    *(
        Patch(
            module=module,
            name="jnp.NINF",
            source="jnp.NINF",
            since="jax 0.4.24",
            reason="removed; -inf takes its place",
            replacement=lambda _: -np.inf,
        )
        for module in ("fedjax.models.shakespeare", "fedjax.models.stackoverflow")
    ),
    Patch(
        module="fedjax.algorithms.apfl",
        name="jnp.clip",
        source="jnp.clip, a_min=0, a_max=1",
        since="jax 0.10.0",
        reason="the keywords a_min and a_max became min and max",
        replacement=lambda clip: lambda array, a_min, a_max: clip(array, a_min, a_max),
        works=lambda clip: "a_min" in inspect.signature(clip).parameters,
    ),
    Patch(
        module="fedjax.algorithms.agnostic_fed_avg",
        name="jnp.ones_like",
        source="jnp.ones_like(init_domain_weights)",
        since="fedjax 0.0.17",
        reason="takes no list, which is what the documented Sequence[float] of domain weights mostly is",
        replacement=lambda ones_like: lambda weights: ones_like(jnp.asarray(weights)),
        works=lambda _: False,
    ),
    Patch(
        module="fedjax.core.for_each_client",
        name="jax.device_put_sharded",
        source="jax.device_put_sharded(",
        since="jax 0.10.0",
        reason="removed; jax.device_put with a sharding takes its place",
        replacement=lambda _: _put_sharded,
    ),
    Patch(
        module="fedjax.core.for_each_client",
        name="jax.device_put_replicated",
        source="jax.device_put_replicated(",
        since="jax 0.10.0",
        reason="removed; jax.device_put with a sharding takes its place",
        replacement=lambda _: _put_replicated,
    ),
    Patch(
        module="fedjax.core.for_each_client",
        name="ForEachClientPmapBackend",
        source="x.addressable_data(i)",
        since="jax 0.4.34",
        reason="one device's part of a pmap result keeps a leading axis of one",
        replacement=_without_device_axis,
        works=lambda _: False,
    ),
    Patch(
        module="fedjax.aggregators.walsh_hadamard",
        name="walsh_hadamard_transform",
        source="@jax.jit\ndef walsh_hadamard_transform(",
        since="fedjax 0.0.17",
        reason="jit traces small_n and precision, which choose shapes and must be static",
        replacement=lambda transform: jax.jit(transform.__wrapped__, static_argnums=(1, 2)),
        works=lambda _: False,
    ),
)
