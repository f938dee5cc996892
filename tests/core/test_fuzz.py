"""A hundred cases of the fuzzer, and that it would notice."""

import dataclasses

import pytest

from sparse_plugins import core
from tests.core import fuzz_updaters as fuzz


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:a ranking across layers:UserWarning")
@pytest.mark.parametrize("first", range(0, 105, 21))
def test_random_runs_keep_what_the_core_promises(first: int) -> None:
    cases = [fuzz.draw(number) for number in range(first, first + 21)]
    outcomes = [fuzz.check(case) for case in cases]
    assert {case.algorithm for case in cases} == {*fuzz.ALGORITHMS}
    assert sum(outcome == "checked" for outcome in outcomes) >= 10


@pytest.mark.thorough
def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"storage": True, "sparsity": 0.75, "optimizer": "guarded sgd", "structure": "unstructured"}
    case = dataclasses.replace(fuzz.draw(fuzz.ALGORITHMS.index("magnitude")), weights="normal", **settings)
    assert fuzz.check(case) == "checked"
    monkeypatch.setattr(core.BaseUpdater, "landed", lambda self, update, param, dense, mask: update)
    with pytest.raises(AssertionError, match="not 0 outside its mask"):
        fuzz.check(case)
