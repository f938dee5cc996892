"""What the pages have to cover: every public name, every algorithm, every name of JaxPruner."""

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparse_plugins import core
from sparse_plugins.core.registry import ALGORITHMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("core", "fed", "rl", "rl.haiku", "rl.dopamine", "vision", "keras", "t5")
# What its package exports, and its updaters have as methods and fields.
JAXPRUNER = re.findall(
    r"\w+",
    """
    ALGORITHM_REGISTRY BaseUpdater GlobalMagnitudePruning GlobalSaliencyPruning MagnitudePruning NoPruning
    NoUpdateSchedule OneShotSchedule PeriodicSchedule PolynomialSchedule RandomPruning RigL SET SaliencyPruning
    SparseState SparsityType StaticRandomSparse SteMagnitudePruning SteRandomPruning all_algorithm_names apply_mask
    create_updater_from_config register_algorithm summarize_intersection summarize_sparsity
    wrap_optax post_gradient_update pre_forward_update instant_sparsify calculate_scores get_initial_masks create_masks
    init_state update_state scheduler skip_gradients is_sparse_gradients sparsity_type sparsity_distribution_fn
    rng_seed use_packed_masks topk_fn drop_fraction_fn Unstructured NByM Block Channel uniform erk
""",
)


@functools.cache
def module_tree(module: str) -> ast.Module | None:
    path = ROOT / module.replace(".", "/")
    files = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()]
    return ast.parse(files[0].read_text()) if files else None


@functools.cache
def exported(module: str) -> frozenset[str]:
    """The `__all__` of a module, read without importing it (Dopamine's loads TensorFlow)."""
    tree = module_tree(module)
    assert tree is not None, f"there is no module {module}"
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    defined = (node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return frozenset(name for name in defined if not name.startswith("_"))


def submodules(package: str) -> Iterator[str]:
    """Modules that a package hands on as such: `from package import part as part`."""
    tree = module_tree(package)
    assert tree is not None
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == package:
            yield from (f"{package}.{alias.name}" for alias in node.names if alias.asname == alias.name)


def public_names() -> set[str]:
    modules = [f"sparse_plugins.{package}" for package in PACKAGES]
    modules += [part for package in modules for part in submodules(package)]
    return {f"{module}.{name}" for module in modules for name in exported(module)}


def documented_names() -> list[str]:
    names, module = [], ""
    for page in sorted((DOCS / "api").glob("*.md")):
        directives = re.findall(r"^\.\. (currentmodule|auto\w+|py:data):: (\S+)$", page.read_text(), flags=re.MULTILINE)
        for directive, name in directives:
            module = name if directive == "currentmodule" else module
            names += [] if directive == "currentmodule" else [f"{module}.{name}"]
    return names


def test_every_public_name_has_its_place_in_the_api_pages() -> None:
    assert public_names() - set(documented_names()) == set()


def test_api_pages_name_nothing_twice_and_nothing_that_does_not_exist() -> None:
    names = documented_names()
    assert sorted(names) == sorted(set(names))
    unknown = [name for name in names if name.rpartition(".")[2] not in exported(name.rpartition(".")[0])]
    assert unknown == []


@pytest.mark.parametrize("name", core.all_algorithm_names())
def test_every_algorithm_has_a_page_with_all_its_parts(name: str) -> None:
    text = (DOCS / "algorithms" / f"{name}.md").read_text()
    headings = ["When to use it", "What it costs", "How to choose it", "Paper"]
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == headings
    assert f'algorithm="{name}"' in text
    assert f"`core.{ALGORITHMS[name].updater_class.__name__}`" in text
    assert re.search(r"^\$\$.+\$\$$", text, flags=re.MULTILINE)
    assert re.search(r"\]\(https://\S+\),\s(19|20)\d\d", text)
    assert f"\n{name}\n" in (DOCS / "algorithms" / "index.md").read_text()


def test_there_is_no_page_for_an_algorithm_that_does_not_exist() -> None:
    pages = {page.stem for page in (DOCS / "algorithms").glob("*.md")}
    assert pages == {*core.all_algorithm_names(), "index"}


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_name_of_jaxpruner_has_a_row_and_ours_in_it_exist() -> None:
    text = (DOCS / "from_jaxpruner.md").read_text()
    theirs = set(re.findall(r"\w+", " ".join(row[0] for row in rows(text))))
    assert set(JAXPRUNER) - theirs == set()
    ours = re.findall(r"`((?:core|fed|rl|vision|keras|t5)(?:\.\w+)+)`", text)
    public = public_names() | {f"sparse_plugins.core.BaseUpdater.{name}" for name in dir(core.BaseUpdater)}
    assert len(ours) > 40
    assert [name for name in ours if f"sparse_plugins.{name}" not in public] == []


def test_methods_and_fields_in_the_table_for_jaxpruner_are_those_of_an_updater() -> None:
    section = (DOCS / "from_jaxpruner.md").read_text().split("## Methods and fields of an updater")[1].split("\n## ")[0]
    bare = [name for row in rows(section)[1:] for name in re.findall(r"^`(\w+)`$", row[1])]
    fields = {field.name for field in dataclasses.fields(core.RigL)}
    assert len(bare) > 15
    assert [name for name in bare if name not in fields and not hasattr(core.RigL, name)] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for index in DOCS.rglob("index.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), flags=re.DOTALL):
            listed |= {index.parent / f"{line}.md" for line in tree.splitlines() if line and line[0] != ":"}
    pages = {page for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert pages - listed == {DOCS / "index.md"}


TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
# What the field calls it; the glossary explains the words.
TERMS = {
    r"mask changes?\b": "mask update",
    r"survivors?\b(?!_only)": "kept weights",
    r"out of use": "inactive",
    r"\d %": "80%, without a space",
    r"are not served|is not served": "not supported",
    r"bit for bit": "bit-exactly",
}
IN_TERMS = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("index", "gallery", "glossary", "which_algorithm"))]
IN_TERMS += [*TUTORIALS, *sorted((DOCS / "algorithms").glob("*.md"))]


def prose(text: str) -> str:
    """A page without its blocks of code, what stands between backticks, and tables that a command writes."""
    text = re.sub(r"^<!-- python -m .*?^<!-- end -->$", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```(?!\{).*?^```$|^```\{code.*?^```$", "", text, flags=re.M | re.S))


@pytest.mark.parametrize("page", IN_TERMS, ids=lambda page: page.stem)
def test_pages_are_written_in_the_terms_of_the_field(page: Path) -> None:
    text = prose(page.read_text())
    found = {match[0]: term for pattern, term in TERMS.items() for match in re.finditer(pattern, text)}
    assert found == {}, "write what stands on the right instead"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_starts_with_the_line_that_changes_and_its_code_fits_the_column(page: Path) -> None:
    text = page.read_text()
    start = text.split("\n## ")[0]
    assert start.index("pip install") < start.index("The whole change is one ")
    assert re.search(r"sparsify|sparse_server_optimizer|sparse_agent|sparse\.gin", start)
    blocks = re.findall(r"^```(?:\{code|diff).*?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 110] == []


def test_pages_link_to_the_glossary() -> None:
    assert all("glossary.md" in page.read_text() for page in (DOCS / "index.md", DOCS / "which_algorithm.md"))


def test_the_gallery_shows_every_example_and_pictures_that_exist() -> None:
    text = (DOCS / "gallery.md").read_text()
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert {name for name in examples if f"`{name}.py`" in text} == examples
    assert {name for name in examples if f"../examples/{name}.py" in (DOCS / "examples.md").read_text()} == examples
    pictures = re.findall(r"^:img-top: (.*)$|\]\((.*\.png)\)", text, flags=re.MULTILINE)
    assert len(pictures) > 10
    assert [picture for pair in pictures for picture in pair if picture and not (DOCS / picture).exists()] == []
