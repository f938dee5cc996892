"""What the README says runs, and what it points at is there."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONTINUES = "<!-- continues -->"


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line number and the code of each Python block.

    A block stands alone, unless the line above says that it continues: then it follows the one before it.
    """
    lines, previous = text.splitlines(), ""
    for start, line in enumerate(lines):
        if line.strip() != "```python":
            continue
        code = list(itertools.takewhile(lambda line: line.strip() != "```", lines[start + 1 :]))
        continues = CONTINUES in lines[max(start - 2, 0) : start]
        front = previous if continues else ""
        previous = front + "\n" * (start + 1 - front.count("\n")) + "\n".join(code) + "\n"
        yield start + 1, previous


BLOCKS = dict(python_blocks(README.read_text()))


@pytest.mark.parametrize("line", BLOCKS)
def test_readme_code_runs(line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # as users have it
        exec(compile(BLOCKS[line], str(README), "exec"), {"__name__": "__main__"})


def test_readme_has_code_for_optax_and_fedjax() -> None:
    joined = "\n".join(BLOCKS.values())
    assert all(name in joined for name in ("wrap_optax", "sparse_server_optimizer"))


@pytest.mark.parametrize("page", [README, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_make_targets_and_modules_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^ *)make ([a-z]+)(?=`|\s*$|\s*#|\s+[A-Z]+=)", text, flags=re.MULTILINE)
    assert set(named) <= targets
    modules = re.findall(r"python3? -m ((?:experiments|sparse_plugins)[\w.]*)", text)
    places = [ROOT / module.replace(".", "/") for module in modules]
    assert [str(place) for place in places if not (place.is_dir() or place.with_suffix(".py").exists())] == []
