"""A learner's weights where they are needed: over every pipe, late, after a loss, and never others than were sent."""

import itertools
import multiprocessing
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sparse_plugins import wire
from sparse_plugins.core.masks import NOT_PRUNED
from sparse_plugins.rl import SocketChannel, StaleWeightsError, WeightFolder, WeightReceiver, WeightSender
from sparse_plugins.rl.weight_sync.channels import REPLY_SIZE, Reply, Request
from sparse_plugins.rl.weight_sync.tunix import PublishedRollout, follow
from tests.wire.cases import same_bits

ROOT = Path(__file__).parents[2]
Tree = dict[str, Any]


def versions() -> Iterator[Tree]:
    """Weights of a training in which little changes, with masks that change now and then."""
    rng = np.random.default_rng(0)
    masters = rng.normal(0, 0.02, (60, 50)).astype(np.float32)
    mask = (rng.random(masters.shape) < 0.3).astype(np.uint8)
    for step in itertools.count():
        masters = masters + rng.normal(0, 1e-5, masters.shape).astype(np.float32)
        if step % 3 == 2:
            mask.flat[rng.integers(mask.size)] ^= 1
        weights = {"w": jnp.asarray(masters * mask, jnp.bfloat16), "b": np.float32(step)}
        yield {"params": weights, "masks": {"w": mask.copy(), "b": NOT_PRUNED}}


LIKE = next(versions())


@pytest.fixture
def hung_up() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def piped(sender: WeightSender, stack: ExitStack, tmp_path: Path) -> Callable[[], Any]:
    def channel() -> Any:
        ours, theirs = multiprocessing.Pipe()
        stack.callback(ours.close)
        stack.callback(theirs.close)
        served(sender, ours, stack)
        return theirs

    return channel


def by_socket(sender: WeightSender, stack: ExitStack, tmp_path: Path) -> Callable[[], Any]:
    def channel() -> Any:
        ours, theirs = map(SocketChannel, socket.socketpair())
        stack.callback(ours.close)
        stack.callback(theirs.close)
        served(sender, ours, stack)
        return theirs

    return channel


def by_files(sender: WeightSender, stack: ExitStack, tmp_path: Path) -> Callable[[], Any]:
    return lambda: WeightFolder(tmp_path / "weights")


def served(sender: WeightSender, channel: Any, stack: ExitStack) -> None:
    """The thread is over before its channel is closed, for closing waits for nobody."""
    thread = threading.Thread(target=sender.serve, args=(channel,), daemon=True)
    thread.start()
    stack.callback(thread.join, 10)


TRANSPORTS = {"pipe": piped, "socket": by_socket, "files": by_files}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_receivers_follow_join_late_and_fall_behind(transport: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        folder = WeightFolder(tmp_path / "weights", snapshot_every=4) if transport == "files" else None
        sender = WeightSender(history=4, folder=folder)
        channel = TRANSPORTS[transport](sender, stack, tmp_path)
        first, slow = WeightReceiver(LIKE, hung(channel(), stack)), WeightReceiver(LIKE, hung(channel(), stack))
        late = None
        for step, tree in zip(range(12), versions(), strict=False):
            version = sender.publish(tree, version=10 * step)
            assert sender.version == version == 10 * step
            assert first.update(timeout=60)
            same_bits(first.weights, jax.tree.map(np.asarray, tree))
            assert not first.update(timeout=60), "there is nothing newer"
            if step in (0, 3, 11):  # two versions lie between, then more than the history holds
                assert slow.update(timeout=60)
                same_bits(slow.weights, first.weights)
            if step == 7:
                late = WeightReceiver(LIKE, hung(channel(), stack))
                assert late.update(timeout=60)
                same_bits(late.weights, first.weights)
            assert first.version == first.newest == version
        assert first.refused == slow.refused == 0
        if transport != "files":
            assert (sender.traffic.snapshots, sender.traffic.deltas) == (4, 11 + 3)
            assert sender.traffic.requests == 24 + 3 + 1
            assert sender.traffic.delta_bytes / 14 < 0.2 * sender.traffic.snapshot_bytes / 4


def hung(channel: Any, stack: ExitStack) -> Any:
    """Hangs up before the threads that serve are waited for."""
    if hasattr(channel, "close"):
        stack.callback(channel.close)
    return channel


ACTOR = """
import socket, sys
import jax
from sparse_plugins import rl, wire
from tests.rl_haiku.test_weight_sync import LIKE
channel = rl.SocketChannel(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
receiver = rl.WeightReceiver(LIKE, channel)
while receiver.version != 5:
    receiver.update(timeout=30)
print(wire.weights_digest(receiver.weights).hex())
"""


def test_another_process_has_the_same_bits() -> None:
    sender = WeightSender()
    with socket.create_server(("127.0.0.1", 0)) as server:
        actor = subprocess.Popen(
            [sys.executable, "-c", ACTOR, str(server.getsockname()[1])], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        channel = SocketChannel(server.accept()[0])
        thread = threading.Thread(target=sender.serve, args=(channel,), daemon=True)
        thread.start()
        for step, tree in zip(range(6), versions(), strict=False):
            sender.publish(tree, version=step)
        printed, _ = actor.communicate(timeout=120)
        thread.join(10)
        channel.close()
    assert printed.strip() == wire.weights_digest(tree).hex()


def test_an_actor_that_does_not_wait_takes_what_is_there_later(tmp_path: Path) -> None:
    sender, (ours, theirs) = WeightSender(), multiprocessing.Pipe()
    with ours, theirs:
        receiver, (first, second) = WeightReceiver(LIKE, theirs), itertools.islice(versions(), 2)
        assert not receiver.update(timeout=0)
        assert not sender.answer(ours), "nothing is published yet, and the request waits"
        sender.publish(first)
        assert not receiver.update(timeout=0)
        assert sender.answer(ours)
        assert not sender.answer(ours)
        sender.publish(second)
        assert receiver.update(timeout=0)
        assert (receiver.version, receiver.newest) == (0, 0)
        assert not receiver.update(timeout=0)
        assert sender.answer(ours)
        assert receiver.update(timeout=0)
        assert receiver.version == 1
        ours.close()
        with pytest.raises((EOFError, ConnectionError)):
            receiver.update(timeout=0)


def test_what_a_learner_overwrites_or_donates_is_what_it_was() -> None:
    sender, receiver = WeightSender(), WeightReceiver({"w": np.zeros(4, np.float32)})
    weights = {"w": np.ones(4, np.float32)}
    sender.publish(weights)
    weights["w"][:] = 7
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        receiver = WeightReceiver(weights, theirs)
        receiver.update(timeout=0), sender.answer(ours), receiver.update(timeout=30)
        assert receiver.weights["w"].tolist() == [1, 1, 1, 1]
        held = receiver.weights
        donated = jax.tree.map(jnp.asarray, weights)
        sender.publish(donated)
        donated["w"].delete()
        receiver.update(timeout=0), sender.answer(ours), receiver.update(timeout=30)
    assert receiver.weights["w"].tolist() == [7, 7, 7, 7]
    assert held["w"].tolist() == [1, 1, 1, 1]


def payloads() -> list[bytes]:
    trees = list(itertools.islice(versions(), 4))
    deltas = [
        wire.delta(new, old, version=n + 1, base_version=n) for n, (old, new) in enumerate(itertools.pairwise(trees))
    ]
    return [wire.delta(trees[0], version=0), *deltas]


def test_duplicates_gaps_and_old_payloads_are_refused_by_name() -> None:
    snapshot, *deltas = payloads()
    receiver = WeightReceiver(LIKE)
    with pytest.raises(
        StaleWeightsError, match="version 1 builds on version 0, and there are none yet: a delta was lost"
    ):
        receiver.take(deltas[0])
    receiver.take(snapshot)
    receiver.take(deltas[0])
    held = receiver.weights
    forged = wire.delta(LIKE, LIKE, version=2, base_version=1)
    for payload, error, message in (
        (deltas[0], StaleWeightsError, "version 1 came, and version 1 is here already: a duplicate"),
        (snapshot, StaleWeightsError, "version 0 came, and version 1 is here already"),
        (
            deltas[2],
            StaleWeightsError,
            "builds on version 2, and version 1 is here: a delta was lost. Ask for it again",
        ),
        (forged, wire.BaseMismatchError, "other weights than the version 1 that is here: they are of two learners"),
        (deltas[1][:-5], wire.CodecError, "it was cut off"),
        (wire.delta({"w": np.ones(3)}, version=9), wire.CodecError, "about another model"),
    ):
        with pytest.raises(error, match=message):
            receiver.take(payload)
        assert receiver.weights is held
        assert receiver.version == 1
    assert receiver.refused == 7
    receiver.take(deltas[1])
    receiver.take(deltas[2])
    assert receiver.version == 3


class Tampering:
    """A channel that changes payloads on their way."""

    def __init__(self, inner: Any, change: Callable[[list[bytes]], list[bytes]]) -> None:
        self.inner, self.change, self.queue = inner, change, []

    def send_bytes(self, buf: bytes) -> None:
        self.inner.send_bytes(buf)

    def poll(self, timeout: float | None) -> bool:
        return bool(self.queue) or self.inner.poll(timeout)

    def recv_bytes(self, maxlength: int) -> bytes:
        if not self.queue:
            reply = Reply.read(self.inner.recv_bytes(REPLY_SIZE))
            changed = self.change([self.inner.recv_bytes(1 << 20) for _ in range(reply.payloads)])
            self.queue = [Reply(len(changed), reply.version).packed(), *changed]
        return self.queue.pop(0)


CHANGES = {
    "lost": lambda found: found[1:],
    "reordered": lambda found: found[::-1],
    "doubled": lambda found: [found[0], *found],
    "damaged": lambda found: [found[0], found[1][:-1] + b"\0", *found[2:]],
    "cut off": lambda found: [part[:90] for part in found],
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_spoilt_on_its_way_is_bridged_by_a_snapshot(name: str) -> None:
    sender, (ours, theirs) = WeightSender(), multiprocessing.Pipe()
    spoil = lambda found: CHANGES[name](found) if len(found) > 1 else found  # noqa: E731
    with ours, theirs:
        thread = threading.Thread(target=sender.serve, args=(ours,), daemon=True)
        thread.start()
        receiver = WeightReceiver(LIKE, Tampering(theirs, spoil))
        trees = list(itertools.islice(versions(), 4))
        sender.publish(trees[0])
        receiver.update(timeout=30)
        for tree in trees[1:]:
            sender.publish(tree)
        assert receiver.update(timeout=30)
        same_bits(receiver.weights, jax.tree.map(np.asarray, trees[-1]))
        assert (receiver.version, sender.traffic.snapshots) == (3, 2)
        assert receiver.refused > 0
        theirs.close()
        thread.join(10)


def test_a_sender_that_lies_twice_is_an_error_and_the_weights_stay() -> None:
    sender, (ours, theirs) = WeightSender(), multiprocessing.Pipe()
    with ours, theirs:
        thread = threading.Thread(target=sender.serve, args=(ours,), daemon=True)
        thread.start()
        channel = Tampering(theirs, lambda found: found)
        receiver = WeightReceiver(LIKE, channel)
        first, second = itertools.islice(versions(), 2)
        sender.publish(first)
        receiver.update(timeout=30)
        held, channel.change = receiver.weights, lambda found: [part[:-1] for part in found]
        sender.publish(second)
        with pytest.raises(wire.CodecError, match="it was cut off"):
            receiver.update(timeout=30)
        assert (receiver.weights, receiver.version, receiver.refused) == (held, 0, 2)
        theirs.close()
        thread.join(10)


def test_a_learner_of_another_run_is_told_from_this_one(hung_up: ExitStack, tmp_path: Path) -> None:
    """Its versions are the same numbers, and its weights are others."""
    first, second, third = itertools.islice(versions(), 3)
    receivers = []
    for trees in ((first, second), (second, third)):
        sender = WeightSender()
        for tree in trees:
            sender.publish(tree)
        receivers.append(WeightReceiver(LIKE, hung(piped(sender, hung_up, tmp_path)(), hung_up)))
    moved, other = receivers
    moved.update(timeout=30)
    moved._channel = other._channel
    with pytest.raises(StaleWeightsError, match="version 1 came, and version 1 is here already"):
        moved.update(timeout=30)
    same_bits(moved.weights, jax.tree.map(np.asarray, second))
    assert other.update(timeout=30)


def test_messages_that_are_none_are_refused() -> None:
    sender, (ours, theirs) = WeightSender(), multiprocessing.Pipe()
    sender.publish(LIKE)
    with ours, theirs:
        theirs.send_bytes(b"GET / HTTP/1.1")
        with pytest.raises(wire.CodecError, match="no request for weights: b'GET"):
            sender.answer(ours)
        receiver = WeightReceiver(LIKE, theirs)
        for message in (b"HTTP/1.1 200", Reply(1 << 30, 0).packed()):
            ours.send_bytes(message)
        with pytest.raises(wire.CodecError, match="announces 1073741824 payloads, and 65536 are the most"):
            receiver.update(timeout=30)
        assert receiver.weights is None
    with pytest.raises(ValueError, match="has no channel to ask: give it one, or pass payloads to `take`"):
        WeightReceiver(LIKE).update(timeout=1)


def test_a_socket_takes_no_more_than_makes_sense_and_waits_no_longer_than_told() -> None:
    ours, theirs = (SocketChannel(end, timeout=0.05) for end in socket.socketpair())
    ours.send_bytes(bytes(100))
    with pytest.raises(wire.CodecError, match="a message has 100 bytes, and 99 are the most"):
        theirs.recv_bytes(99)
    ours.close()
    left, right = socket.socketpair()
    with left:
        left.sendall(b"\x05\0\0\0\0\0\0\0ab")
        with pytest.raises(TimeoutError):
            SocketChannel(right, timeout=0.05).recv_bytes(9)
    assert right.fileno() == -1, "what comes next would be taken for a length"


def test_arguments_out_of_range_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="history is -1; give the number of deltas to keep, 0 or more"):
        WeightSender(history=-1)
    with pytest.raises(ValueError, match="snapshot_every is 0; give a number of versions, 1 or more"):
        WeightFolder(tmp_path, snapshot_every=0)
    sender = WeightSender(folder=WeightFolder(tmp_path / "run"))
    sender.publish(LIKE, version=5)
    for version in (5, 4):
        with pytest.raises(ValueError, match=f"version {version} does not rise above 5"):
            sender.publish(LIKE, version=version)
    with pytest.raises(ValueError, match="give the weights of one model"):
        sender.publish({"params": LIKE["params"]})
    assert sender.version == 5
    with pytest.raises(ValueError, match="holds weights of another run: give an empty folder"):
        WeightSender(folder=WeightFolder(tmp_path / "run")).publish(LIKE)


def test_files_that_are_old_are_removed_and_damaged_ones_named(tmp_path: Path) -> None:
    sender = WeightSender(folder=WeightFolder(tmp_path, snapshot_every=3))
    waiting = WeightReceiver(LIKE, WeightFolder(tmp_path))
    assert not waiting.update(timeout=0.01), "nothing is there yet"
    for tree in itertools.islice(versions(), 8):
        sender.publish(tree)
    names = sorted(path.name.lstrip("0") for path in tmp_path.iterdir())
    assert names == ["3.delta", "3.snapshot", "4.delta", "5.delta", "6.delta", "6.snapshot", "7.delta"]
    assert waiting.update(timeout=0.01)
    assert waiting.version == 7
    newest = max(tmp_path.glob("*.snapshot"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(wire.CodecError, match=rf"{newest.name}: .*it was cut off"):
        WeightReceiver(LIKE, WeightFolder(tmp_path)).update(timeout=1)


def test_a_request_says_what_there_is() -> None:
    assert Request.read(Request(None).packed()) == Request(None)
    assert Request.read(Request(0, bytes(range(16))).packed()) == Request(0, bytes(range(16)))


class Rollout:
    """What Tunix's rollouts have, as far as weights are concerned."""

    def __init__(self) -> None:
        self.params: Any = None
        self.filters: list[Any] = []

    def update_params(self, params: Any, filter_types: tuple[Any, ...] | None = None) -> None:
        assert all(leaf.sharding for leaf in jax.tree.leaves(params)), "Tunix asks each array for it"
        self.params = params
        self.filters.append(filter_types)

    def pad_id(self) -> int:
        return 7


def test_rollouts_of_tunix_follow_the_trainer(hung_up: ExitStack, tmp_path: Path) -> None:
    sender, near, far = WeightSender(), Rollout(), Rollout()
    trainers, trees = PublishedRollout(near, sender), [nnx_state(value) for value in (1.0, 2.0)]
    receiver = WeightReceiver(trees[0], hung(piped(sender, hung_up, tmp_path)(), hung_up))
    for tree in trees:
        trainers.update_params(tree, ("lora",))
        assert near.params is tree
        assert follow(far, receiver, timeout=30)
        assert not follow(far, receiver, timeout=30)
        assert jax.tree.structure(far.params) == jax.tree.structure(tree)
        same_bits(jax.tree.leaves(far.params), jax.tree.map(np.asarray, jax.tree.leaves(tree)))
    assert (near.filters, far.filters, trainers.pad_id()) == ([("lora",)] * 2, [None] * 2, 7)


def nnx_state(value: float) -> Any:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), nnx.state(model))
