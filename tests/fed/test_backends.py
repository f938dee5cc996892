import itertools
import os
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_plugins import fed
from sparse_plugins.fed.fedjax.backends import batched, distributed
from sparse_plugins.fed.fedjax.backends.batched import ScanBackend, ShardedBackend
from sparse_plugins.fed.fedjax.backends.on_cpus import by_batch
from tests.fed import rounds
from tests.quick import FLAGS

fedjax = fed.import_fedjax()
ROOT = Path(__file__).parents[2]

BACKENDS = {
    "scan": ScanBackend(),
    "scan, short runs": ScanBackend(max_batches=2),
    "scan, convolutions": ScanBackend(matmul_convolutions=False),
    "scan, matmuls": ScanBackend(matmul_convolutions=True),
    "sharded": ShardedBackend(),
    "sharded, two a device": ShardedBackend(clients_per_device=2),
    "sharded, short runs": ShardedBackend(clients_per_device=3, max_batches=2),
}


def assert_close(ours, expected) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: npt.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, expected)


@pytest.fixture(scope="module")
def expected() -> dict:
    return {name: rounds.run(name, "jit") for name in rounds.ALGORITHMS}


@pytest.mark.parametrize("algorithm", rounds.ALGORITHMS)
@pytest.mark.parametrize("backend", ["scan", "sharded, two a device"])  # below: eight devices
def test_algorithms_end_as_with_fedjax_own_backend(algorithm, backend, expected):
    assert_close(rounds.run(algorithm, BACKENDS[backend]), expected[algorithm])


def count_and_sum(backend):
    """Stateful clients: integer sums that become floats, keys of both kinds, results of every step."""

    def init(shared, client):
        return {"sum": 0, "seen": shared["start"], "key": client["key"], "scale": client["scale"]}

    def step(state, batch):
        noise = jax.random.normal(state["key"], ()) * 0.01
        total = state["sum"] + state["scale"] * jnp.sum(batch["x"]) + noise
        key = jax.random.fold_in(state["key"], batch["x"].shape[0])
        state = {**state, "sum": total, "key": key, "seen": state["seen"] + batch["x"].shape[0]}
        return state, {"mean": jnp.mean(batch["x"]), "size": batch["x"].shape[0], "key": key}

    def final(shared, state):
        return {"sum": state["sum"] - shared["start"], "seen": state["seen"]}

    with fedjax.for_each_client_backend(backend):
        return fedjax.for_each_client(init, step, final, with_step_result=True)


def ragged_clients(batch_sizes: list[list[int]]) -> list:
    clients = []
    for number, sizes in enumerate(batch_sizes):
        rng = np.random.default_rng(number)
        batches = [{"x": rng.normal(size=(size, 3)).astype(np.float32)} for size in sizes]
        clients.append((f"client {number}", batches, {"key": jax.random.key(number), "scale": np.float32(number)}))
    return clients


def described(results) -> dict:
    """Results by client, keys as numbers."""
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    as_array = lambda x: np.asarray(data(jnp.asarray(x)))  # noqa: E731
    return {name: jax.tree.map(as_array, (output, steps)) for name, output, steps in results}


RAGGED = [[4, 4, 4, 2], [], [4], [3], [2, 4, 4, 2, 2, 4], [4] * 9, [], [1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_and_empty_clients_with_step_results(backend):
    shared = {"start": jnp.float32(2.0)}
    ours, theirs = (described(run(shared, ragged_clients(RAGGED))) for run in (count_and_sum(BACKENDS[backend]), JIT))
    assert_close(ours, theirs)


@settings(max_examples=10)
@given(st.lists(st.lists(st.sampled_from([1, 2]), max_size=6), max_size=7))
def test_any_sequence_of_batch_shapes(batch_sizes):
    shared = {"start": jnp.float32(2.0)}
    expected = described(JIT(shared, ragged_clients(batch_sizes)))
    for ours in (SCAN, SHARDED):
        assert_close(described(ours(shared, ragged_clients(batch_sizes))), expected)


TWO = ShardedBackend(clients_per_device=2, max_batches=2)
JIT, SCAN, SHARDED = map(count_and_sum, ("jit", ScanBackend(max_batches=4), TWO))


@pytest.mark.parametrize(("backend", "read"), [(ScanBackend(), 1), (ShardedBackend(clients_per_device=2), 8)])
def test_clients_are_streamed(backend, read):
    """Never more clients read than announced, never more outputs alive than a group has."""
    asked = itertools.count()
    with fedjax.for_each_client_backend(backend):
        run = fedjax.for_each_client(lambda shared, _: shared, lambda state, batch: state + batch)
    clients = ((next(asked), [np.ones(1000, np.float32)], ()) for _ in range(100))
    alive = []
    for yielded, (_, output) in enumerate(run(jnp.zeros(1000), clients), start=1):
        alive.append(weakref.ref(output))
        del output
        assert next(asked) <= yielded + read + yielded  # one more each time that it is asked here
        assert sum(reference() is not None for reference in alive) <= 2


def test_numbers_of_batches_share_compiled_programs():
    traced = []

    def step(state, batch):
        traced.append(batch.shape)
        return state + batch.sum()

    with fedjax.for_each_client_backend(ScanBackend(max_batches=8)):
        run = fedjax.for_each_client(lambda shared, _: shared, step)
    clients = [(number, [np.ones(3, np.float32)] * number, ()) for number in range(1, 30)]
    totals = {name: float(total) for name, total in run(jnp.float32(0), clients)}
    assert totals == {number: 3.0 * number for number in range(1, 30)}
    assert len(traced) <= 4  # runs of 1, 2, 4 and 8


def test_steps_with_convolutions_are_called_one_by_one_on_cpus_and_others_looped(monkeypatch):
    called = []

    def calling(*parts):
        run = by_batch(*parts)
        return lambda *inputs: called.append(1) or run(*inputs)

    monkeypatch.setattr(batched, "by_batch", calling)
    smooth = lambda state, batch: jax.jit(jnp.convolve)(state, batch)[:4]  # noqa: E731
    steps = {"looped": (lambda state, batch: state + batch.sum(), 0), "called": (smooth, 3)}
    clients = lambda: [(number, iter([np.ones(3, np.float32)] * number), ()) for number in (0, 2, 1, 5)]  # noqa: E731
    for name, (step, count) in steps.items():
        called.clear()
        ours, theirs = [], []
        for into, backend in ((ours, ScanBackend()), (theirs, "jit")):
            with fedjax.for_each_client_backend(backend):
                run = fedjax.for_each_client(lambda shared, _: shared, step)
            into += [(client, np.asarray(output)) for client, output in run(jnp.ones(4), clients())]
        assert len(called) == count, name
        for (client, output), (expected_client, expected) in zip(ours, theirs, strict=True):
            assert client == expected_client
            npt.assert_allclose(output, expected, rtol=1e-6)


@pytest.mark.parametrize("add", [jnp.add, lambda w, batch: w + jnp.convolve(batch, jnp.ones(1))])  # looped and called
def test_a_step_may_keep_the_memory_of_shared_input(add):
    shared = {"w": jnp.ones(4)}
    with fedjax.for_each_client_backend(ScanBackend()):
        run = fedjax.for_each_client(lambda shared, _: shared, lambda state, batch: {"w": add(state["w"], batch)})
    for _ in range(2):
        ((_, output),) = run(shared, [("a", [np.ones(1, np.float32)], ())])
        npt.assert_array_equal(output["w"], 2 * np.ones(4))
    npt.assert_array_equal(shared["w"], np.ones(4))


@pytest.mark.parametrize("backend", [ScanBackend(), ShardedBackend(clients_per_device=2)])
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda state, batch: {"w": jnp.zeros(3)}, r"state\['w'\] from float32\[2\] into float32\[3\].*'jit'"),
        (lambda state, batch: {"w": state["w"].astype(jnp.bfloat16)}, r"from float32\[2\] into bfloat16\[2\]"),
        (lambda state, batch: state["w"], "another tree of state"),
    ],
)
def test_a_state_that_changes_its_type_is_an_error(backend, step, message):
    with fedjax.for_each_client_backend(backend):
        run = fedjax.for_each_client(lambda shared, _: {"w": jnp.zeros(2)}, step)
    with pytest.raises(TypeError, match=message):
        list(run(None, [("a", [np.ones(1)], ())]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScanBackend(max_batches=0), "max_batches must be at least 1, got 0"),
        (lambda: ShardedBackend([]), "devices is empty"),
        (lambda: ShardedBackend(clients_per_device=0), "clients_per_device must be at least 1"),
    ],
)
def test_wrong_arguments_are_value_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_convolutional_model_of_emnist():
    ours, theirs = (rounds.run_emnist(backend) for backend in (ScanBackend(), "jit"))
    assert_close(ours, theirs)


def in_processes(folder: Path, commands: list[list[str]], **environment: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fed.rounds", str(folder), *command],
            env={**os.environ, **environment},
            cwd=ROOT,
        )
        for command in commands
    ]
    try:
        assert [process.wait(timeout=400) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


def leaves(folder: Path, name: str) -> list:
    return list(np.load(folder / f"{name}.npz").values())


def test_eight_devices_end_as_one(tmp_path, expected):
    in_processes(tmp_path, [["sharded"]], XLA_FLAGS=f"{FLAGS} --xla_force_host_platform_device_count=8")
    for algorithm, params in expected.items():
        assert_close(leaves(tmp_path, f"{algorithm} 8"), jax.tree.leaves(params))
    assert_close(leaves(tmp_path, "fed_avg 3"), jax.tree.leaves(expected["fed_avg"]))


def test_results_travel_as_numbers_to_a_process_that_has_no_step_results():
    state = optax.sgd(0.1, momentum=0.9).init({"w": jnp.ones((2, 3), jnp.bfloat16)})
    step = {"loss": jnp.float32(2), "seen": (jnp.arange(3), None), "all": [jnp.zeros(0)]}
    results = [
        [{"state": state, "key": jax.random.key(1)}, [step] * 2],
        [{"state": state, "key": jax.random.key(2)}, []],
    ]
    message = distributed._packed(results)
    for known in (results, results[1:]):
        received = list(distributed._unpacked(message, known))
        assert jax.tree.structure(received) == jax.tree.structure(results)
        for there, here in zip(jax.tree.leaves(received), jax.tree.leaves(results), strict=True):
            assert there.dtype == here.dtype
            assert (there == here).all()


def test_step_results_of_ones_own_class_need_a_process_that_knows_it():
    results = [[jnp.ones(2), [optax.EmptyState()]]]
    message = distributed._packed(results)
    assert next(distributed._unpacked(message, results))[1] == [optax.EmptyState()]
    with pytest.raises(TypeError, match=r"step results are a EmptyState.* raise clients_per_exchange"):
        list(distributed._unpacked(message, [[jnp.ones(2), []]]))


def test_two_processes_end_as_one(tmp_path, expected):
    port = rounds.free_port()
    in_processes(tmp_path, [["distributed", str(port), rank] for rank in "01"])
    for algorithm in rounds.DISTRIBUTED:
        first, second = (leaves(tmp_path, f"{algorithm} {rank}") for rank in (0, 1))
        jax.tree.map(npt.assert_array_equal, first, second)
        assert_close(first, jax.tree.leaves(expected[algorithm]))
    for rank in (0, 1):
        assert_close(leaves(tmp_path, f"steps {rank}"), jax.tree.leaves(rounds.step_results("jit")))
