"""What `print` shows of an updater, and what `help` says of its class."""

import dataclasses
import functools
import pydoc
import re

import jax
import pytest

from sparse_plugins import core
from sparse_plugins.core.registry import ALGORITHMS

UPDATERS = {name: algorithm.updater_class for name, algorithm in ALGORITHMS.items()}


@pytest.mark.parametrize("name", UPDATERS)
def test_an_updater_prints_as_the_call_that_makes_it(name: str) -> None:
    updater = core.build_updater(name, sparsity=0.75, total_steps=1_000, structure=None, rng_seed=3)
    shown = str(updater)
    assert " at 0x" not in shown
    assert "functools" not in shown
    told = {**vars(core), "erk": lambda **words: functools.partial(core.erk, **words)}
    again = eval(shown, told)
    for field in dataclasses.fields(updater):
        ours, theirs = (getattr(described, field.name) for described in (updater, again))
        assert repr(ours) == repr(theirs), field.name


def test_keys_functions_and_parts_are_shown() -> None:
    static = core.StaticRandomSparse(rng_seed=jax.random.key(7), topk_fn=lambda scores, sparsity: scores)
    parts = core.PerModule([("head/.*", static)])
    assert str(parts) == "PerModule(updaters=(('head/.*', StaticRandomSparse(rng_seed=key [0, 7], topk_fn=<lambda>)),))"
    assert str(core.NoPruning()) == "NoPruning()"
    assert (
        str(core.RigL(drop_fraction_fn=core.ConstantDrop(0.1))) == "RigL(drop_fraction_fn=ConstantDrop(fraction=0.1))"
    )


@pytest.mark.parametrize(
    "updater_class", [*dict.fromkeys(UPDATERS.values()), core.PerModule], ids=lambda made: made.__name__
)
def test_help_explains_every_field_before_the_rest(updater_class: type[core.BaseUpdater]) -> None:
    text = updater_class.__doc__ or ""
    fields = re.findall(r"^    (\w+): ", text.partition("Attributes:\n")[2].partition("\n\n")[0], re.MULTILINE)
    assert set(fields) == {field.name for field in dataclasses.fields(updater_class) if field.init}
    assert text.index("Attributes:") < min(text.find(f"{part}:") % 10**6 for part in ("Example", "Source", "Raises"))


@pytest.mark.parametrize(
    "updater_class", [*dict.fromkeys(UPDATERS.values()), core.PerModule], ids=lambda made: made.__name__
)
def test_help_shows_a_training_from_its_start(updater_class: type[core.BaseUpdater]) -> None:
    example = (updater_class.__doc__ or "").partition("Example:\n")[2].partition("\n\n")[0]
    assert re.search(r"core\.sparsify\(|wrap_optax\(", example)
    assert "core.start(tx, " in example
    assert "tx.update(" in example
    assert len(example.splitlines()) < 15


@pytest.mark.parametrize("updater_class", [core.RigL, core.PerModule, core.GlobalMagnitudePruning])
def test_help_shows_no_address_and_a_signature_of_one_look(updater_class: type[core.BaseUpdater]) -> None:
    text = pydoc.render_doc(updater_class, renderer=pydoc.plaintext)
    (signature,) = re.findall(rf"^ \|  {updater_class.__name__}\(.*$", text, re.MULTILINE)
    assert not re.search("0x|sparse_plugins[.]|functools", signature)
    assert len(signature) < 500


def test_help_of_the_configuration_lists_its_keys() -> None:
    listed = re.findall(r"`(\w+)`", (core.create_updater_from_config.__doc__ or "").partition("Args:")[2])
    assert {field.name for field in dataclasses.fields(core.SparsityConfig)} <= set(listed)


def test_a_class_of_your_own_reads_like_ours() -> None:
    @dataclasses.dataclass(eq=False)
    class Movement(core.MagnitudePruning):
        """Prunes what moves towards 0.

        Attributes:
            decay: Of the moving average.
        """

        decay: float = 0.9

    assert str(Movement(decay=0.5)) == "Movement(decay=0.5)"
    assert "    scheduler: When masks are updated" in (Movement.__doc__ or "")
    assert (Movement.__doc__ or "").endswith("    decay: Of the moving average.\n")
