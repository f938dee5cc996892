"""T5X is not on the package index: tests get a stand-in, and every one starts without gin bindings.

What a gin file registers is forgotten again: files of other tests may go by the same last name.
"""

import copy
from collections.abc import Iterator

import gin
import pytest

from tests.t5 import t5x_stand_in


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    t5x_stand_in.install(monkeypatch)
    gin.clear_config()
    for registry in ("_REGISTRY", "_INVERSE_REGISTRY"):
        monkeypatch.setattr(gin.config, registry, copy.deepcopy(getattr(gin.config, registry)))
    yield
    gin.clear_config()
