"""A reply is bound to what it answers: replayed, crossed and forged ones are refused by name, and the round goes on."""

import dataclasses
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_plugins import core, fed
from sparse_plugins.wire import envelope
from sparse_plugins.wire.message_binding import BINDING_SIZE, pack_binding
from tests.fed.test_averaging import averaging, growing, run
from tests.fed.toy import clients_of_a_round, updater_of
from tests.wire.cases import same_bits

LIKE = {"b": np.zeros(2, np.float32), "w": np.linspace(-1, 1, 40, dtype=np.float32)}
MASKS = {"b": core.NOT_PRUNED, "w": (np.arange(40) % 5 == 0).astype(np.uint8)}
DIGEST = fed.masks_digest(MASKS, LIKE)
ANSWER = fed.Binding("update", "a run", 3, "anna", DIGEST)
BOUND = fed.encode(MASKS, LIKE, base=MASKS, binding=ANSWER)

OTHERS = {
    "run": ("another run", "belongs to another run than 'another run'"),
    "message": ("growth", "it is an update, and a growth signal is expected"),
    "client": ("ben", "belongs to another client than 'ben'"),
    "round": (4, "answers round 3, and round 4 is expected"),
    "masks": (DIGEST ^ 1, "answers other masks than those of the broadcast"),
}


def with_checksum(front: bytes) -> bytes:
    return front + struct.pack("<I", zlib.crc32(front))


@pytest.mark.parametrize("field", OTHERS)
@pytest.mark.parametrize("zstd", [False, True])
def test_a_message_that_answers_something_else_is_refused_before_it_is_decoded(field, zstd):
    other, reason = OTHERS[field]
    payload = fed.encode(MASKS, LIKE, base=MASKS, binding=ANSWER, zstd=zstd)
    spoilt = with_checksum(payload[: 35 + BINDING_SIZE] + b"\xff" * (len(payload) - 39 - BINDING_SIZE))
    for message in (payload, spoilt):
        with pytest.raises(fed.BindingError, match=reason):
            fed.decode(message, LIKE, base=MASKS, binding=dataclasses.replace(ANSWER, **{field: other}))
    same_bits(fed.decode(payload, LIKE, base=MASKS, binding=ANSWER).masks, MASKS)
    with pytest.raises(fed.CodecError):
        fed.decode(spoilt, LIKE, base=MASKS, binding=ANSWER)


def test_a_binding_takes_nine_bytes_and_needs_no_reader_that_asks_for_it():
    plain = fed.encode(MASKS, LIKE, base=MASKS, base_version=3)
    assert len(BOUND) == len(plain) + 9
    bound, unbound = (fed.decode(payload, LIKE, base=MASKS) for payload in (BOUND, plain))
    same_bits((bound.masks, bound.values), (unbound.masks, unbound.values))
    assert bound.base_version == unbound.base_version == fed.needed_base(BOUND) == 3
    with pytest.raises(fed.BindingError, match="it is bound to no run, round and client"):
        fed.decode(plain, LIKE, base=MASKS, binding=ANSWER)


def test_a_client_reads_a_broadcast_of_its_run_whatever_its_round():
    broadcast = fed.encode(MASKS, LIKE, binding=fed.Binding("broadcast", "a run", 12, masks=DIGEST))
    received = fed.decode(broadcast, LIKE, binding=fed.Binding("broadcast", "a run"))
    assert received.base_version == 12
    assert fed.masks_digest(received.masks, LIKE) == DIGEST
    with pytest.raises(fed.BindingError, match="another run"):
        fed.decode(broadcast, LIKE, binding=fed.Binding("broadcast", "mine"))


def test_payloads_of_version_1_are_read_and_are_bound_to_nothing():
    plain = fed.encode(MASKS, LIKE, base=MASKS, base_version=3)
    old = with_checksum(plain[:4] + b"\x01" + plain[5:-4])
    same_bits(fed.decode(old, LIKE, base=MASKS).values, fed.decode(plain, LIKE, base=MASKS).values)
    with pytest.raises(fed.BindingError, match="bound to no run"):
        fed.decode(old, LIKE, base=MASKS, binding=ANSWER)
    with pytest.raises(fed.CodecError, match="flags 12 and dtype 0 have no meaning in version 1"):
        fed.decode(with_checksum(BOUND[:4] + b"\x01" + BOUND[5:-4]), LIKE, base=MASKS)


NAMES = st.text(max_size=3)
BINDINGS = st.builds(
    fed.Binding,
    st.sampled_from(["broadcast", "update", "growth"]),
    NAMES,
    st.integers(0, 2**32 - 1),
    NAMES,
    st.integers(0, 2**32 - 1),
)


@given(BINDINGS, BINDINGS)
def test_a_message_is_taken_by_whom_expects_it_and_by_nobody_else(sent, expected):
    payload = fed.encode(MASKS, LIKE, binding=sent)
    fed.decode(payload, LIKE, binding=sent)
    if sent != expected:
        with pytest.raises(fed.BindingError):
            fed.decode(payload, LIKE, binding=expected)


def test_bindings_that_say_nothing_or_something_else_than_the_message_are_errors():
    with pytest.raises(ValueError, match="message is 'mask'; choose one of broadcast, update, growth"):
        fed.Binding("mask")
    for field in ("round", "masks"):
        with pytest.raises(ValueError, match=rf"{field} is -1; give a number in \[0, 2\*\*32\)"):
            dataclasses.replace(ANSWER, **{field: -1})
    with pytest.raises(ValueError, match="binding has round None and base_version is 0"):
        fed.encode(MASKS, LIKE, binding=fed.Binding("update", "a run"))
    with pytest.raises(ValueError, match="binding has round 3 and base_version is 2"):
        fed.encode(MASKS, LIKE, base_version=2, binding=ANSWER)
    with pytest.raises(ValueError, match="base holds other masks than those of binding"):
        fed.encode(MASKS, LIKE, base=MASKS, binding=dataclasses.replace(ANSWER, masks=1))


# Below, client 3's replies of round 1 are replaced on their way.

VICTIM, MESSAGES = 3, ("broadcast", "update", "growth")


def type_of(payload: bytes) -> str:
    return MESSAGES[envelope.read_header(payload).binding[0]]


class Hostile(fed.Faults):
    """A channel that keeps what it carries, and replaces the victim's replies of one type in round 1."""

    def __post_init__(self):
        super().__post_init__()
        for name, value in (("sent", {}), ("replaced", "update"), ("forge", lambda sent, payload: payload)):
            object.__setattr__(self, name, value)

    def attack(self, replaced, forge):
        object.__setattr__(self, "replaced", replaced)
        object.__setattr__(self, "forge", forge)

    def deliver(self, round_num, client, payload):
        self.sent[round_num, client, type_of(payload)] = payload
        is_target = (round_num, client, type_of(payload)) == (1, VICTIM, self.replaced)
        return self.forge(self.sent, payload) if is_target else payload


def attacked(updater, **options):
    channel = Hostile()
    algorithm = averaging(updater, faults=channel, run="toy", **options)
    return channel, algorithm, run(algorithm, 1)[-1]


@pytest.fixture(scope="module")
def fixed_masks():
    return attacked(updater_of("static_sparse"))


@pytest.fixture(scope="module")
def moving_masks():
    return attacked(growing(), growth="topk")


@pytest.fixture(scope="module")
def personal_masks():
    return attacked(growing(), personal_masks=True)


def bound_to(payload: bytes, **changes) -> bytes:
    """The same content as an answer to something else, as whoever reads messages can write it."""
    header = envelope.read_header(payload)
    answer = fed.Binding(type_of(payload), "toy", header.base_version, str(VICTIM), header.base_digest)
    answer = dataclasses.replace(answer, **changes)
    changed = dataclasses.replace(
        header, binding=pack_binding(answer), base_version=answer.round, base_digest=answer.masks
    )
    return envelope.seal(changed, payload[35 + BINDING_SIZE : -4])


def unbound(payload: bytes) -> bytes:
    header = envelope.read_header(payload)
    changed = dataclasses.replace(header, binding=b"", flags=header.flags & ~envelope.Flags.BOUND)
    return envelope.seal(changed, payload[35 + BINDING_SIZE : -4])


def of_no_type(payload: bytes) -> bytes:
    header = envelope.read_header(payload)
    changed = dataclasses.replace(header, binding=b"\x07" + header.binding[1:])
    return envelope.seal(changed, payload[35 + BINDING_SIZE : -4])


def written_anew(state, payload: bytes, masks) -> bytes:
    """A message with other masks that is bound as it should be."""
    answer = fed.Binding(
        type_of(payload), "toy", state.round, str(VICTIM), fed.masks_digest(masks_of(state), state.params)
    )
    values = jax.tree.map(lambda p: jnp.ones_like(p) * 9.0, state.params)
    return fed.encode(masks, values, binding=answer)


def masks_of(state):
    return core.unpack_masks(state.params, state.opt_state.masks)


def attack(case, replaced, forge):
    """State and diagnostics of round 1 under attack, and those without the victim."""
    channel, algorithm, state = case
    channel.attack(replaced, forge)
    clients = clients_of_a_round(1)
    after, told = algorithm.apply(state, clients)
    expected, _ = algorithm.apply(state, clients[:VICTIM])
    assert [told[client]["status"] for client in range(VICTIM)] == ["ok"] * VICTIM
    return after, told[VICTIM], expected


FORGERIES = {
    "replayed": (lambda sent, payload: sent[0, VICTIM, "update"], "it answers round 0, and round 1 is expected"),
    "crossed": (lambda sent, payload: sent[1, 2, "update"], "it belongs to another client than '3'"),
    "of another run": (lambda sent, payload: bound_to(payload, run="other"), "it belongs to another run than 'toy'"),
    "a growth signal": (
        lambda sent, payload: bound_to(payload, message="growth"),
        "it is a growth signal, and an update is expected",
    ),
    "a broadcast": (
        lambda sent, payload: bound_to(payload, message="broadcast"),
        "it is a broadcast, and an update is expected",
    ),
    "to other masks": (lambda sent, payload: bound_to(payload, masks=1), "it answers other masks"),
    "bound to nothing": (lambda sent, payload: unbound(payload), "it is bound to no run, round and client"),
    "of no type": (lambda sent, payload: of_no_type(payload), "there is no message type 7"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_reply_that_answers_something_else_is_refused_by_name(fixed_masks, name):
    forge, reason = FORGERIES[name]
    after, told, expected = attack(fixed_masks, "update", forge)
    assert told["status"].startswith(f"refused: {reason}")
    assert told["delta_l2_norm"] is None
    jax.tree.map(npt.assert_array_equal, after.params, expected.params)


def moved(mask) -> np.ndarray:
    """As many weights, all but one of them the same."""
    mask = np.array(mask)
    kept, pruned = np.flatnonzero(mask)[0], np.flatnonzero(mask == 0)[0]
    mask.flat[[kept, pruned]] = 0, 1
    return mask


OTHER_MASKS = {
    "another mask": lambda masks: jax.tree.map(moved, masks),
    "all weights": lambda masks: jax.tree.map(np.ones_like, masks),
    "no weights": lambda masks: jax.tree.map(np.zeros_like, masks),
    "whole layers": lambda masks: jax.tree.map(lambda mask: core.NOT_PRUNED, masks),
}


@pytest.mark.parametrize("name", OTHER_MASKS)
def test_an_update_with_other_masks_is_refused_by_name(fixed_masks, name):
    forge = lambda sent, payload: written_anew(fixed_masks[2], payload, OTHER_MASKS[name](masks_of(fixed_masks[2])))  # noqa: E731
    after, told, expected = attack(fixed_masks, "update", forge)
    assert told["status"] == "refused: the mask of layer 'mlp/~/linear_0/w' is not what was asked for"
    jax.tree.map(npt.assert_array_equal, after.params, expected.params)


def test_a_clients_mask_may_be_any_that_keeps_as_many_weights(personal_masks):
    masks = masks_of(personal_masks[2])
    forge = lambda how: lambda sent, payload: written_anew(personal_masks[2], payload, OTHER_MASKS[how](masks))  # noqa: E731
    after, told, expected = attack(personal_masks, "update", forge("all weights"))
    assert told["status"].startswith("refused: the mask of layer")
    jax.tree.map(npt.assert_array_equal, after.params, expected.params)
    assert attack(personal_masks, "update", forge("another mask"))[1]["status"] == "ok"


def asked_of(state):
    return jax.tree.map(lambda mask: 1 - np.asarray(mask), masks_of(state))


GROWTH_FORGERIES = {
    "an update": (
        lambda state, payload: bound_to(payload, message="update"),
        "it is an update, and a growth signal is expected",
    ),
    "replayed": (lambda state, payload: bound_to(payload, round=0), "it answers round 0, and round 1 is expected"),
    "of weights in use": (lambda state, payload: written_anew(state, payload, masks_of(state)), "the mask of layer"),
    "of all pruned weights": (
        lambda state, payload: written_anew(state, payload, asked_of(state)),
        "the mask of layer",
    ),
    "whole layers": (
        lambda state, payload: written_anew(state, payload, OTHER_MASKS["whole layers"](masks_of(state))),
        "the mask of layer",
    ),
}


@pytest.mark.parametrize("name", GROWTH_FORGERIES)
def test_a_growth_signal_that_was_not_asked_for_is_refused_by_name(moving_masks, name):
    forge, reason = GROWTH_FORGERIES[name]
    after, told, _ = attack(moving_masks, "growth", lambda sent, payload: forge(moving_masks[2], payload))
    assert told["growth_status"].startswith(f"refused: {reason}")
    channel, algorithm, state = moving_masks
    channel.attack("growth", lambda sent, payload: None)
    lost, told = algorithm.apply(state, clients_of_a_round(1))
    assert [client["growth_status"] for client in told.values()] == ["ok"] * VICTIM + ["too late"]
    jax.tree.map(npt.assert_array_equal, after.params, lost.params)


def test_what_became_of_growth_signals_is_in_the_ledger():
    ledger = fed.Ledger()
    channel, algorithm, state = attacked(growing(), growth="dense", ledger=ledger)
    channel.attack("growth", lambda sent, payload: written_anew(state, payload, masks_of(state)))
    algorithm.apply(state, clients_of_a_round(1))
    statuses = [(entry.round, entry.growth_status.partition(":")[0]) for entry in ledger]
    assert statuses == [(0, "")] * 4 + [(1, "ok")] * 3 + [(1, "refused")]
    assert list(fed.Ledger.from_csv(ledger.to_csv())) == list(ledger)
