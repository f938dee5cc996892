"""What the fuzzer tries for long, for a moment: the fixed corpus, what it has found, and mutations of a fixed seed."""

import importlib
import random
from types import ModuleType

import pytest

from tests.fuzz.__main__ import TARGETS

# What once ended otherwise than promised, by target.
FOUND = {
    "studies": [
        b'\x00{"settings": {}, "git": {"commit": "0"}}',
        b"\x06round,client\r3,anna",
        b"\x04{}",
        b"\x01" + "algorithm,sparsity\nü".encode()[:-1],
        b"\x02algorithm\n" + b"a" * 200_000 + b"\n",
    ],
    "configs": [
        b'algorithm = "magnitude"\nsparsity_type = [["he"\nsparsity = 0.8',
        b"algorithm = " + b"[" * 20_000,
    ],
    "archives": [b"", b"PK\x05\x06" + bytes(18), b"PK\x05\x06" + b"\xff" * 18],
    "codec": [b""],
    "deltas": [b""],
}
TOKENS = b'[]{}0123456789",-.enulltra\\\n'
MUTATIONS = {"studies": 100, "configs": 200, "archives": 60, "codec": 40, "deltas": 200}


def mutated(corpus: list[bytes], choice: random.Random) -> bytes:
    """A valid input with one to four changes: bits, cuts, tokens, and parts of other inputs."""
    data = bytearray(choice.choice(corpus))
    for _ in range(choice.randint(1, 4)):
        place, other = choice.randrange(len(data) + 1), choice.choice(corpus)
        start = choice.randrange(len(other) + 1)
        new = [
            bytes([data[place] ^ 1 << choice.randrange(8)]) if place < len(data) else b"",
            bytes(choice.choices(TOKENS, k=choice.randrange(1, 6))),
            other[start : start + choice.randrange(1, 40)],
            b"",
        ]
        data[place : place + choice.choice((0, 1, 8, len(data)))] = choice.choice(new)
    return bytes(data)


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.{request.param}")


def test_valid_inputs_and_what_was_found_end_as_promised(target: ModuleType) -> None:
    for data in [*target.corpus(), *FOUND[target.__name__.rpartition(".")[2]]]:
        target.check(data)


def test_mutations_end_as_promised(target: ModuleType) -> None:
    corpus, choice = [*target.corpus()], random.Random(0)
    for _ in range(MUTATIONS[target.__name__.rpartition(".")[2]]):
        target.check(mutated(corpus, choice))
