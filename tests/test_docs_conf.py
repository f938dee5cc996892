"""What the site makes of docstrings and signatures."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from sparse_plugins import core
from sparse_plugins.core.schedules import PolynomialSchedule


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "docs" / "conf.py"))


def test_fields_stand_below_the_first_sentence(conf: dict[str, Any]) -> None:
    lines = ["What it is.", "", "More of it.", "", "Attributes:", "    size: Of it.", "", "Example:", "    >>> 1", ""]
    conf["fields_first"](None, "class", "x", object, None, lines)
    expected = ["What it is.", "", "Fields:", "    size: Of it.", "", "More of it.", "", "Example:", "    >>> 1", ""]
    assert lines == expected


def test_a_class_of_a_sentence_and_fields_and_a_function_stay_whole(conf: dict[str, Any]) -> None:
    lines = ["What it is.", "", "Attributes:", "    size: Of it."]
    conf["fields_first"](None, "class", "x", object, None, lines)
    assert [line for line in lines if line] == ["What it is.", "Fields:", "    size: Of it."]
    untouched = ["What it does.", "", "Attributes:", "    size: Of it."]
    conf["fields_first"](None, "function", "x", len, None, untouched)
    assert untouched[2] == "Attributes:"


def test_signatures_show_no_addresses_and_of_an_updater_what_it_adds(conf: dict[str, Any]) -> None:
    shown, _ = conf["shorten"](None, "class", "x", core.RigL, None, "(every, field)", None)
    assert shown.endswith("**fields)")
    assert "rng_seed" not in shown
    assert "drop_fraction_fn" in shown
    raw = "(loss=<function mse at 0x7f00>, start=<jax._src.initializers.Xavier object at 0x7f01>, other=<a b c>)"
    assert conf["shorten"](None, "function", "x", len, None, raw, None)[0] == "(loss=mse, start=Xavier, other=...)"
    assert conf["shorten"](None, "function", "x", len, None, None, None) is None


def test_private_parents_are_not_shown(conf: dict[str, Any]) -> None:
    bases = list(PolynomialSchedule.__bases__)
    assert bases[0].__name__.startswith("_")
    conf["hide_private"](None, "x", PolynomialSchedule, None, bases)
    assert bases == [object]


def test_a_mean_and_its_spread_stay_on_one_line(conf: dict[str, Any]) -> None:
    source = ["| rigl | 69.1 ± 0.6 |"]
    conf["keep_spreads_whole"](None, "page", source)
    assert source == ["| rigl | 69.1\u00a0±\u00a00.6 |"]
