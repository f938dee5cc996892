import importlib
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest

from sparse_plugins import fed
from sparse_plugins.fed.fedjax import compat

fedjax = fed.import_fedjax()


def run_python(code: str, folder: pathlib.Path, **environment: str) -> None:
    """Run code in a new process, in a folder, with every warning an error."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), **environment},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr


LIGHT_IMPORT = """
import sys, types
import haiku, jax, jax.numpy as jnp, numpy as np, optax

def contents(module):
    items = vars(module).items()
    return {name: id(value) for name, value in items if not isinstance(value, types.ModuleType)}

libraries = jax, jnp, np, jax.tree_util
before = [contents(library) for library in libraries]
sys.pycache_prefix = "nothing is cached here"  # so that FedJAX is compiled, which warns of a string in it
sys.dont_write_bytecode = True
from sparse_plugins import fed
assert "fedjax" not in sys.modules
assert fed.sparse_server_optimizer
assert not {"tensorflow", "keras", "pandas", "sklearn"} & set(sys.modules)
assert [contents(library) for library in libraries] == before
assert not hasattr(jax, "tree_map")

import fedjax
assert fedjax is fed.import_fedjax()
assert fedjax.tree_util.tree_weight({"w": 2.0}, 3.0) == {"w": 6.0}
sys.modules["tensorflow"] = None  # as where it is not installed
try:
    fedjax.serialization.save_state({}, "state")
except ModuleNotFoundError as error:
    assert "pip install tensorflow-cpu" in str(error), error
else:
    raise AssertionError("saved a state without TensorFlow")
"""


WITHOUT_FEDJAX = """
import sys
sys.modules["fedjax"] = sys.modules["haiku"] = None  # as where they are not installed
import sparse_plugins.fed.growth
from sparse_plugins import fed, wire
from sparse_plugins.fed import strokes
from sparse_plugins.fed.ledger import Ledger

assert fed.Ledger is Ledger and fed.encode is wire.encode
assert fed.Aggregation(fed.FedMedian()).min_clients == 1 and fed.Wire() and fed.Faults() and fed.Checkpoints
assert strokes.images(seed=0, writer=7, difficulty=0.7)[0].shape[1:] == (28, 28)
for ask in (lambda: fed.sparse_server_optimizer, lambda: fed.import_fedjax(), lambda: strokes.load):
    try:
        ask()
    except ImportError as error:
        assert 'pip install "sparse-plugins[fed]"' in str(error), error
    else:
        raise AssertionError("found FedJAX")
"""


def test_what_belongs_to_no_framework_needs_none(tmp_path):
    run_python(WITHOUT_FEDJAX, tmp_path)


def test_import_is_light_and_changes_only_fedjax(tmp_path):
    run_python(LIGHT_IMPORT, tmp_path)


TENSORFLOW_LOOKALIKE = """
import types
io = types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open))
"""
FIRST_USE_OF_TENSORFLOW = """
import sys
from sparse_plugins import fed
fedjax = fed.import_fedjax()
assert "tensorflow" not in sys.modules
fedjax.serialization.save_state({"round": 3}, "state")
assert sys.modules["tensorflow"].io
assert fedjax.serialization.load_state("state") == {"round": 3}
"""


def test_tensorflow_is_imported_at_first_use(tmp_path):
    (tmp_path / "tensorflow.py").write_text(TENSORFLOW_LOOKALIKE)
    run_python(FIRST_USE_OF_TENSORFLOW, tmp_path)


BACKENDS_ON_TWO_DEVICES = """
from sparse_plugins import fed
import jax, jax.numpy as jnp
fedjax = fed.import_fedjax()
assert jax.local_device_count() == 2

def init(shared, client):
    return {"limit": shared, "count": client}

def step(state, batch):
    above = jnp.sum(batch > state["limit"])
    return {**state, "count": state["count"] + above}, above

def final(shared, state):
    return {**state, "limit": state["limit"] - shared}

low, high = jnp.arange(4), jnp.arange(4) + 1
clients = [(b"a", [high, low], jnp.int32(2)), (b"b", [high], jnp.int32(0)), (b"c", [], jnp.int32(7))]
for backend in "jit", "debug", "pmap":
    with fedjax.for_each_client_backend(backend):
        run = fedjax.for_each_client(init, step, final, with_step_result=True)
    found = {name: (output, steps) for name, output, steps in run(jnp.int32(2), clients)}
    assert jax.tree.map(lambda leaf: leaf.tolist(), found) == {
        b"a": ({"limit": 0, "count": 5}, [2, 1]),
        b"b": ({"limit": 0, "count": 2}, [2]),
        b"c": ({"limit": 0, "count": 7}, []),
    }, (backend, found)
"""


def test_every_backend_runs_on_two_devices(tmp_path):
    run_python(BACKENDS_ON_TWO_DEVICES, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2")


@pytest.mark.parametrize("missing", ["fedjax", "haiku"])
def test_missing_framework_names_the_extra(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'needs {missing}.*pip install "sparse-plugins\[fed\]"'):
        fed.import_fedjax()


def test_patching_again_changes_nothing():
    modules = [importlib.import_module(patch.module) for patch in compat.PATCHES]
    before = [dict(vars(module)) for module in modules]
    assert fed.import_fedjax() is fedjax
    assert not any(compat.apply_patch(patch) for patch in compat.PATCHES)
    assert [dict(vars(module)) for module in modules] == before


def test_the_patched_parts_of_fedjax_work():
    npt.assert_array_equal(fedjax.tree_util.tree_zeros_like({"w": jnp.ones(2)})["w"], [0, 0])
    penalty = fedjax.regularizers.l2_regularizer(0.5, {"w": jnp.ones(2)})({"w": jnp.array([1.0, 3.0])})
    assert penalty == 2.0

    serialization = fedjax.serialization
    scalar = serialization.msgpack_deserialize(serialization.msgpack_serialize(np.float16(1.5)))
    assert scalar == 1.5
    assert scalar.dtype == np.float16

    for language in fedjax.models.shakespeare, fedjax.models.stackoverflow:
        assert language.create_lstm_model(vocab_size=4, embed_size=2, lstm_hidden_size=2).eval_metrics

    by_twos = fedjax.aggregators.walsh_hadamard_transform(jnp.arange(8.0), small_n=2)
    npt.assert_array_equal(by_twos, fedjax.aggregators.walsh_hadamard_transform(jnp.arange(8.0)))


# A patch for a small stand-in of a FedJAX module, for the versions of it that may come.
PATCH = compat.Patch(
    module="federated",
    name="jax.tree_map",
    source="jax.tree_map(",
    since="jax 0.6.0",
    reason="removed",
    replacement=lambda _: jax.tree_util.tree_map,
)
USES_REMOVED_NAME = "import jax\ndef double(tree): return jax.tree_map(lambda leaf: 2 * leaf, tree)\n"


@pytest.fixture
def federated(request, tmp_path, monkeypatch) -> types.ModuleType:
    (tmp_path / "federated.py").write_text(request.param)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "federated", raising=False)
    yield importlib.import_module("federated")
    del sys.modules["federated"]


@pytest.mark.parametrize("federated", [USES_REMOVED_NAME], indirect=True)
def test_a_removed_name_is_replaced_for_its_module_only(federated):
    assert compat.apply_patch(PATCH)
    assert not compat.apply_patch(PATCH)
    assert federated.double({"w": 2}) == {"w": 4}
    assert federated.jax.numpy is jnp
    assert not hasattr(jax, "tree_map")


FIXED_FEDJAX = USES_REMOVED_NAME.replace("jax.tree_map", "jax.tree.map")
FIXED_JAX = USES_REMOVED_NAME.replace("import jax", "import types; jax = types.SimpleNamespace(tree_map=map)")


@pytest.mark.parametrize("federated", [FIXED_FEDJAX, FIXED_JAX], indirect=True)
def test_nothing_is_replaced_once_upstream_is_fixed(federated):
    jax_before = federated.jax
    assert not compat.apply_patch(PATCH)
    assert federated.jax is jax_before
