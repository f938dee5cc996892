"""What stands on what: floors, circles, sizes, and how little `import sparse_plugins` loads."""

import ast
import graphlib
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FRONT_ENDS = {f"sparse_plugins.{name}" for name in ("fed", "rl", "vision", "keras", "t5")}
SHARED = {"sparse_plugins.wire", "sparse_plugins.checkpoints"}  # by front ends
# What each floor may import of this repository, longest prefix first; each may also import itself.
FLOORS = {
    "sparse_plugins.core": set(),
    "sparse_plugins.wire": {"sparse_plugins.core"},
    "sparse_plugins.checkpoints": {"sparse_plugins.core"},
    **{name: {"sparse_plugins.core", *SHARED} for name in FRONT_ENDS},
    "sparse_plugins": {"sparse_plugins.core"},
    "experiments": {"sparse_plugins.core", *SHARED, *FRONT_ENDS, "sparse_plugins"},
}
CORE_NEEDS = {"jax", "numpy", "optax"}
MAX_LINES = 600


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for top in ("sparse_plugins", "experiments") for path in (ROOT / top).rglob("*.py")}
TEST_FILES = {module_name(path): path for path in (ROOT / "tests").rglob("*.py")}


def imported(path: Path) -> Iterator[str]:
    """Yield each module a file imports, at any depth; `from a import b` is `a.b` where that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else str(node.module)


IMPORTS = {module: sorted(set(imported(path))) for module, path in FILES.items()}


def floor_of(module: str) -> str | None:
    return next((floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")), None)


def test_a_floor_imports_only_from_floors_below_it() -> None:
    edges = ((module, target) for module, targets in IMPORTS.items() for target in targets)
    ours = ((module, target) for module, target in edges if floor_of(target) not in (None, floor_of(module)))
    assert [edge for edge in ours if floor_of(edge[1]) not in FLOORS[floor_of(edge[0])]] == []


def test_core_needs_only_jax_optax_and_numpy() -> None:
    core = (targets for module, targets in IMPORTS.items() if floor_of(module) == "sparse_plugins.core")
    roots = {target.split(".")[0] for targets in core for target in targets}
    assert roots - sys.stdlib_module_names - {"sparse_plugins"} <= CORE_NEEDS


def test_nothing_is_imported_through_the_top_level_links() -> None:
    targets = [(path, target) for path in (*FILES.values(), *TEST_FILES.values()) for target in imported(path)]
    assert [edge for edge in targets if edge[1].split(".")[0] in {"core", "fed", "rl"}] == []


RUNS_WHAT_IT_READS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def test_no_module_reads_pickles_but_the_converter_of_old_runs() -> None:
    """And that one is called by nothing; NumPy's reader needs to be told to unpickle."""
    readers = [module for module, targets in IMPORTS.items() if RUNS_WHAT_IT_READS & {t.split(".")[0] for t in targets}]
    converter = "sparse_plugins.rl.dopamine.convert_old_run"
    assert readers == [converter]
    assert [module for module, targets in IMPORTS.items() if converter in targets] == []
    allowed = [module for module, path in FILES.items() if "allow_pickle=True" in path.read_text()]
    assert allowed == []


def test_no_import_circle() -> None:
    graph = {module: {target for target in targets if target in FILES} for module, targets in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("files", [FILES, TEST_FILES], ids=["source", "tests"])
def test_no_file_is_long(files: dict[str, Path]) -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in files.items()}
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


PROBE = """
import json, sys, time
start = time.perf_counter()
import jax, optax
base, before = time.perf_counter(), set(sys.modules)
import sparse_plugins
done, added = time.perf_counter(), set(sys.modules) - before
print(json.dumps({"added": sorted(added), "ratio": (done - start) / (base - start)}))
"""


def test_import_adds_next_to_nothing_to_jax_and_optax() -> None:
    run = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    print(f"import sparse_plugins takes {found['ratio']:.2f} times as long as import jax, optax")
    foreign = {name for name in found["added"] if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign <= {name for name in FILES if floor_of(name) in ("sparse_plugins", "sparse_plugins.core")}


PUBLIC = [
    f"sparse_plugins.{name}" for name in ("core", "fed", "rl", "rl.haiku", "rl.dopamine", "keras", "t5", "vision")
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_listed_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    public = {key for key, value in vars(module).items() if not (key.startswith("_") or isinstance(value, ModuleType))}
    assert public == set(module.__all__)
    assert [key for key in module.__all__ if not has_own_docstring(getattr(module, key))] == []


def has_own_docstring(thing: object) -> bool:
    """Dataclasses and named tuples without a docstring get their signature as one; that does not count."""
    text = inspect.getdoc(thing) or ""
    return bool(text) and not text.startswith(f"{getattr(thing, '__name__', '')}(")
