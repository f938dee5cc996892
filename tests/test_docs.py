"""What the README and the pages beside it say runs, and what they point at is there."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONTINUES = "<!-- continues -->"
ELSEWHERE = "<!-- run by "


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line number and the code of each Python block.

    A block stands alone, unless the line above says that it continues: then it follows the one before it.
    One that says which other test runs it is left to that.
    """
    lines, previous = text.splitlines(), ""
    for start, line in enumerate(lines):
        if line.strip() != "```python" or ELSEWHERE in lines[max(start - 1, 0)]:
            continue
        code = list(itertools.takewhile(lambda line: line.strip() != "```", lines[start + 1 :]))
        continues = CONTINUES in lines[max(start - 2, 0) : start]
        front = previous if continues else ""
        previous = front + "\n" * (start + 1 - front.count("\n")) + "\n".join(code) + "\n"
        yield start + 1, previous


# Notebooks have cells in place of these blocks; they run in `make docs`.
SITE = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
PAGES = [README, *SITE, ROOT / "experiments" / "README.md", ROOT / "experiments" / "results" / "README.md"]
BLOCKS = {f"{page.relative_to(ROOT)}:{line}": code for page in PAGES for line, code in python_blocks(page.read_text())}


@pytest.mark.parametrize("place", BLOCKS)
def test_code_of_the_pages_runs(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # as users have it
        exec(compile(BLOCKS[place], place, "exec"), {"__name__": "__main__"})


def test_readme_has_code_for_optax_fedjax_and_dopamine() -> None:
    joined = "\n".join(code for place, code in BLOCKS.items() if place.startswith(README.name))
    assert all(name in joined for name in ("core.sparsify", "sparse_server_optimizer", "create_sparse_agent"))


def test_the_first_screen_of_the_readme_says_what_to_install_and_what_to_type() -> None:
    lines = README.read_text().splitlines()
    first = "\n".join(lines[:30])
    assert all(text in first for text in ("pip install", "make demo", "core.sparsify(", "![Left"))
    assert len(lines) <= 120


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_make_targets_and_modules_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^ *)make ([a-z0-9-]+)(?=`|\s*$|\s*#|\s+[A-Z]+=)", text, flags=re.MULTILINE)
    assert set(named) <= targets
    modules = re.findall(r"python3? -m ((?:experiments|sparse_plugins)[\w.]*)", text)
    places = [ROOT / module.replace(".", "/") for module in modules]
    assert [str(place) for place in places if not (place.is_dir() or place.with_suffix(".py").exists())] == []
