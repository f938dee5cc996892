"""Advice where an optional library is missing: what is not installed is told from what is."""

import sys

import pytest

from sparse_plugins.missing import explain_import_error
from sparse_plugins.rl.environments import gymnax_games as jax_environments
from sparse_plugins.rl.environments.atari import roms

EXTRA = '"sparse-plugins[demo]"'
ADVICE = {
    "a library of the extra": (
        ModuleNotFoundError("No module named 'agents'", name="agents"),
        'the demo needs agents, which is not installed; run: pip install "sparse-plugins[demo]"',
    ),
    "a library that another one imports": (
        ModuleNotFoundError("No module named 'sixth'", name="sixth.moves"),
        "the demo needs sixth, which agents or something else it needs imports and did not bring; run: pip install "
        "sixth, or the package that holds it",
    ),
    "a module that this release lacks": (
        ModuleNotFoundError("No module named 'json.agents'", name="json.agents"),
        "the demo: the installed json has no json.agents, so it is another release; run: pip install "
        '"sparse-plugins[demo]"',
    ),
    "a library that is broken": (
        ImportError("cannot import name 'tree_map' from 'jax'", name="jax"),
        "the demo needs agents, and the import failed: cannot import name 'tree_map' from 'jax'",
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_fits_what_is_missing(case: str) -> None:
    error, advice = ADVICE[case]
    explained = explain_import_error(error, "the demo", ("agents",), EXTRA)
    assert str(explained) == advice
    assert (type(explained), explained.name) == (type(error), error.name)


def fails_with(name: str):
    def import_module(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return import_module


def test_a_library_that_gymnax_does_not_bring_is_not_mistaken_for_gymnax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "six", None)
    monkeypatch.setattr(jax_environments.importlib, "import_module", fails_with("six"))
    with pytest.raises(ModuleNotFoundError, match=r'needs six, .*pip install "sparse-plugins\[gymnax\]"'):
        jax_environments.gymnax_environment("CartPole-v1")
    monkeypatch.setitem(sys.modules, "seaborn", None)
    monkeypatch.setattr(jax_environments.importlib, "import_module", fails_with("seaborn"))
    with pytest.raises(ModuleNotFoundError, match=r"needs seaborn, which gymnax or .* run: pip install seaborn"):
        jax_environments.gymnax_environment("CartPole-v1")


def test_ale_without_its_binding_is_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py._ale_py", None)
    with pytest.raises(ModuleNotFoundError, match=r'the installed ale_py has no ale_py._ale_py.*"ale-py>=0.12.1"'):
        roms.ale.__wrapped__()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'sparse_plugins.rl.environments.atari needs ale_py, .*"ale-py>=0.12.1"'
    ):
        roms.ale.__wrapped__()
