"""For doctests, which are compiled quickly, as most of the tests are.

Of single files: pytest runs a module twice whose package, not imported yet, imports it as well.
"""

import pytest

import sparse_plugins.core  # noqa: F401
from tests.quick import compile_quickly

collect_ignore = ["experiments/demos/tunix_sync.py"]  # it imports Tunix, which is installed by hand


@pytest.fixture(autouse=True)
def quick_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what XLA does for speed where an example runs."""
    if isinstance(request.node, pytest.DoctestItem):
        compile_quickly(monkeypatch)
