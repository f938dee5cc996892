"""What the Makefile, the extras, the tutorials and the scripts in release/ promise each other."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = PROJECT["optional-dependencies"]
OF_THE_REPOSITORY = {"docs", "fuzz", "release", "experiments", "dev", "dev-core"}  # not for users
TARGETS = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)[0].split()
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BY_HAND = {"tunix"}  # too large for the lock and for a weekly run
# Where the package imports what an extra brings; a longer name goes before a shorter one.
EXTRAS_OF = {
    "core": [],
    "wire": ["zstd"],
    "fed": ["fed"],
    "fed/flower": ["flower"],
    "rl": ["dopamine", "gymnax", "haiku"],
    "rl/environments/atari": ["atari"],
    "rl/dopamine": ["dopamine"],
    "rl/haiku": ["haiku"],
    "vision": ["vision"],
    "keras": ["keras"],
    "t5": ["t5"],
}
# FedJAX reads some of its files with TensorFlow, which is no part of the extra: the error says what to install.
LEFT_TO_THE_USER = {"fed": {"tensorflow"}}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def brought(extras: Iterable[str]) -> set[str]:
    """Names of the packages that the extras and the core declare themselves."""
    nested = [line for extra in extras for line in DECLARED[extra]]
    inner = [extra for line in nested if "[" in line for extra in re.search(r"\[(.*)\]", line)[1].split(",")]
    flat = {plain(line) for line in [*PROJECT["dependencies"], *nested] if "[" not in line}
    return flat | (brought(inner) if inner else set())


def imported(code: str) -> set[str]:
    """The top-level modules, not of Python or of ours, that some code imports at any depth."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    roots = {name.partition(".")[0] for name in found}
    return roots - sys.stdlib_module_names - {"sparse_plugins", "experiments"}


def undeclared(modules: set[str], packages: set[str]) -> set[str]:
    installed = packages_distributions()
    names = {module: {plain(name) for name in installed.get(module, [module])} for module in modules}
    return {module for module, candidates in names.items() if not candidates & packages}


def test_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert sorted(re.findall(r"^make (\S+) ", listed, flags=re.MULTILINE)) == sorted(TARGETS)
    assert "study-t5" in TARGETS


def test_targets_are_what_the_makefile_defines_and_the_script_runs() -> None:
    defined = re.findall(r"^([a-z0-9-]+):", MAKEFILE, flags=re.MULTILINE)
    assert sorted(defined) == sorted(TARGETS)
    run = ["release/check_targets.sh", "--list"]
    assert subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split() == TARGETS


def test_every_extra_for_users_is_checked_alone() -> None:
    extras = {"core", *DECLARED} - OF_THE_REPOSITORY - BY_HAND
    assert set(re.findall(r"^EXTRAS := (.*)$", MAKEFILE, flags=re.MULTILINE)[0].split()) == extras
    uses = re.findall(r"^def use_(\w+)\(", (ROOT / "release" / "use_extra.py").read_text(), flags=re.MULTILINE)
    assert set(uses) == extras
    (everything,) = DECLARED["all"]
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == extras - {"core", "all"}


def part_of(path: Path) -> str:
    name = path.relative_to(ROOT / "sparse_plugins").as_posix()
    return max((part for part in EXTRAS_OF if f"{name}/".startswith(f"{part}/")), key=len, default="core")


@pytest.mark.parametrize("part", EXTRAS_OF)
def test_a_front_end_declares_what_it_imports(part: str) -> None:
    files = [path for path in (ROOT / "sparse_plugins").rglob("*.py") if part_of(path) == part]
    modules = set().union(*(imported(path.read_text()) for path in files)) - LEFT_TO_THE_USER.get(part, set())
    assert files
    assert undeclared(modules, brought(EXTRAS_OF[part])) == set()


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_says_what_to_install_and_the_documentation_brings_it(page: Path) -> None:
    text = page.read_text()
    (line,) = re.findall(r"^    pip install (.*)$", text, flags=re.MULTILINE)
    ours, *others = line.replace('"', "").split()
    extras = re.findall(r"\[(.*)\]", ours)
    packages = brought(extras[0].split(",") if extras else []) | {plain(name) for name in others}
    cells = re.findall(r"^```\{code-cell\}.*?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    modules = set().union(*(imported(cell) for cell in cells))
    assert "jax" in modules or "gin" in modules
    assert undeclared(modules, packages) == set()
    assert undeclared(modules, brought(["all", "experiments", "docs"])) == set()
