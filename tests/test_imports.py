"""What stands on what: floors, circles, sizes, and how little is loaded of what nobody asked for."""

import ast
import functools
import graphlib
import importlib
import inspect
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FRONT_ENDS = {f"sparse_plugins.{name}" for name in ("fed", "rl", "vision", "keras", "t5")}
GROUND = ("sparse_plugins.missing", "sparse_plugins.on_demand")
SHARED = {"sparse_plugins.core", "sparse_plugins.wire", "sparse_plugins.checkpoints", *GROUND}  # by front ends
# What each floor may import of this repository, longest prefix first; each may also import itself.
FLOORS = {
    **{name: set() for name in GROUND},
    "sparse_plugins.wire": {*GROUND},
    "sparse_plugins.core": {"sparse_plugins.wire", *GROUND},
    "sparse_plugins.checkpoints": {"sparse_plugins.core", "sparse_plugins.wire", *GROUND},
    **dict.fromkeys(FRONT_ENDS, SHARED),
    "sparse_plugins": {"sparse_plugins.core", "sparse_plugins.wire", *GROUND},
    "experiments": {*SHARED, *FRONT_ENDS, "sparse_plugins"},
}
NEEDS = {
    **{name: set() for name in GROUND},
    "sparse_plugins.wire": {"ml_dtypes", "numpy"},
    "sparse_plugins.core": {"jax", "numpy", "optax"},
}
MAX_LINES = 600


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for top in ("sparse_plugins", "experiments") for path in (ROOT / top).rglob("*.py")}
TEST_FILES = {module_name(path): path for path in (ROOT / "tests").rglob("*.py")}


def imported(path: Path, with_types: bool = True) -> Iterator[str]:
    """Yield each module a file imports, at any depth; `from a import b` is `a.b` where that is a module."""
    nodes = deque([ast.parse(path.read_text())])
    while nodes:
        node = nodes.popleft()
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        nodes.extend(node.orelse if is_for_types and not with_types else ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else str(node.module)


@functools.cache
def imports() -> dict[str, list[str]]:
    """By module what it imports; read where a test needs it, not in every process that looks for tests."""
    return {module: sorted(set(imported(path))) for module, path in FILES.items()}


def floor_of(module: str) -> str | None:
    return next((floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")), None)


def test_a_floor_imports_only_from_floors_below_it() -> None:
    edges = ((module, target) for module, targets in imports().items() for target in targets)
    ours = ((module, target) for module, target in edges if floor_of(target) not in (None, floor_of(module)))
    assert [edge for edge in ours if floor_of(edge[1]) not in FLOORS[floor_of(edge[0])]] == []


@pytest.mark.parametrize("floor", NEEDS)
def test_the_lower_floors_need_few_libraries(floor: str) -> None:
    """An import for the type checker alone is none."""
    modules = [path for module, path in FILES.items() if floor_of(module) == floor]
    roots = {target.split(".")[0] for path in modules for target in imported(path, with_types=False)}
    assert roots - sys.stdlib_module_names - {"sparse_plugins"} == NEEDS[floor]


def test_nothing_is_imported_through_the_top_level_links() -> None:
    targets = [(path, target) for path in (*FILES.values(), *TEST_FILES.values()) for target in imported(path)]
    assert [edge for edge in targets if edge[1].split(".")[0] in {"core", "fed", "rl"}] == []


RUNS_WHAT_IT_READS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def test_no_module_reads_pickles_but_the_converter_of_old_runs() -> None:
    """And that one is called by nothing; NumPy's reader needs to be told to unpickle."""
    readers = [
        module for module, targets in imports().items() if RUNS_WHAT_IT_READS & {t.split(".")[0] for t in targets}
    ]
    converter = "sparse_plugins.rl.dopamine.convert_old_run"
    assert readers == [converter]
    assert [module for module, targets in imports().items() if converter in targets] == []
    allowed = [module for module, path in FILES.items() if "allow_pickle=True" in path.read_text()]
    assert allowed == []


@pytest.mark.parametrize(
    ("rim", "libraries"),
    [("sparse_plugins.fed.fedjax", {"fedjax", "haiku"}), ("sparse_plugins.fed.flower", {"flwr"})],
)
def test_only_a_rim_of_fed_knows_its_framework(rim: str, libraries: set[str]) -> None:
    paths = {name: path for name, path in FILES.items() if floor_of(name) == "sparse_plugins.fed"}
    inside = {name: set(imported(path, with_types=False)) for name, path in paths.items() if not name.startswith(rim)}
    assert len(inside) > 8
    knows = lambda target: target.split(".")[0] in libraries or target.startswith(rim)  # noqa: E731
    assert {name: list(filter(knows, targets)) for name, targets in inside.items() if any(map(knows, targets))} == {}


@pytest.mark.parametrize(
    "name",
    [
        "sparse_plugins",
        "sparse_plugins.core",
        "sparse_plugins.fed",
        "sparse_plugins.fed.flower",
        "sparse_plugins.fed.strokes",
    ],
)
def test_names_on_demand_are_those_that_the_type_checker_sees(name: str) -> None:
    (block,) = (node for node in ast.parse(FILES[name].read_text()).body if isinstance(node, ast.If))
    package, seen = importlib.import_module(name), set()
    for statement in block.body:
        for alias in statement.names:
            place = f"{statement.module}.{alias.name}"
            is_module = place in FILES
            expected = importlib.import_module(place if is_module else statement.module)
            assert getattr(package, alias.name) is (expected if is_module else getattr(expected, alias.name))
            seen.add(alias.name)
    assert seen <= set(dir(package))


def listed(path: Path) -> set[str]:
    """The names in a file's `__all__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(node).startswith("__all__"):
            return set(ast.literal_eval(node.value))
    return set()


@pytest.mark.parametrize("floor", ["sparse_plugins.fed", "sparse_plugins.wire", "sparse_plugins.missing"])
def test_what_another_module_imports_is_listed_as_public(floor: str) -> None:
    public = {name: listed(path) for name, path in FILES.items() if floor_of(name) == floor}
    nodes = [node for path in FILES.values() for node in ast.walk(ast.parse(path.read_text()))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module in public]
    taken = {(node.module, alias.name) for node in imports for alias in node.names}
    assert len(taken) > 0
    modules = {name.rpartition(".")[2] for name in public}  # those of `fed` are at hand as its attributes, too
    assert [(module, name) for module, name in taken if name not in public[module] | modules] == []


CORE = [module for module in FILES if floor_of(module) == "sparse_plugins.core"]
OF_NAMED_TUPLES = {"_replace", "_fields", "_asdict"}


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("module", CORE)
def test_nothing_private_crosses_a_file_of_core(module: str) -> None:
    """What begins with an underscore is read off `self`, in the file that makes it, and is never imported."""
    nodes = list(ast.walk(parsed(module)))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    made |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    reads = [node for node in attributes if is_private(node.attr) and node.attr not in OF_NAMED_TUPLES]
    allowed = {f"{owner}.{name}" for owner in ("self", "cls") for name in made}
    assert [text for node in reads if (text := ast.unparse(node)) not in allowed] == []
    imports = (alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names)
    assert [name for name in imports if is_private(name)] == []


OF_DOPAMINE = {"_memory", "_replay", "_rng", "_support", "_transition_accumulator"}  # which this repository has, too


def privately_made(tree: ast.Module) -> set[str]:
    nodes = list(ast.walk(tree))
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return {name for name in made if is_private(name)}


def test_no_file_reads_what_another_one_keeps_private() -> None:
    trees = {module: ast.parse(path.read_text()) for module, path in FILES.items()}
    made = {module: privately_made(tree) for module, tree in trees.items()}
    ours = set().union(*made.values()) - OF_DOPAMINE
    reads = [(module, n) for module, tree in trees.items() for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    foreign = [(module, node) for module, node in reads if node.attr in ours - made[module]]
    assert [(module, text) for module, node in foreign if not (text := ast.unparse(node)).startswith("self.")] == []
    imports = [(module, n) for module, tree in trees.items() for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert [(m, alias.name) for m, node in imports for alias in node.names if is_private(alias.name)] == []


@pytest.mark.parametrize("module", CORE)
def test_core_says_what_its_files_give_to_others(module: str) -> None:
    """A name that another file of the package imports is in `__all__`."""
    assigned = (node for node in parsed(module).body if isinstance(node, ast.Assign))
    listed = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__all__"]
    assert NAMES_IMPORTED.get(module, set()) - {name for names in listed for name in names} == set()


NAMES_IMPORTED: dict[str, set[str]] = {}
for source in FILES.values():
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in FILES}
            NAMES_IMPORTED.setdefault(str(node.module), set()).update(names)


def updaters_of_any_type(module: str) -> list[str]:
    arguments = (node for node in ast.walk(parsed(module)) if isinstance(node, ast.arg) and node.arg == "updater")
    return [f"line {node.lineno}" for node in arguments if node.annotation and ast.unparse(node.annotation) == "Any"]


@pytest.mark.parametrize("module", sorted(set(CORE) - {"sparse_plugins.core.base_updater"}))
def test_core_knows_what_it_asks_of_an_updater(module: str) -> None:
    """`updater: Any` would hide that a step calls a hook that nobody has; `check_updater` alone takes anything."""
    assert updaters_of_any_type(module) == []


def test_no_import_circle() -> None:
    graph = {module: {target for target in targets if target in FILES} for module, targets in imports().items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("files", [FILES, TEST_FILES], ids=["source", "tests"])
def test_no_file_is_long(files: dict[str, Path]) -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in files.items()}
    assert {module: length for module, length in lengths.items() if length > MAX_LINES} == {}


PROBE = """
import importlib, json, sys
for library in sys.argv[2:]:
    importlib.import_module(library)
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def added_by(module: str, *after: str) -> set[str]:
    """What an import loads that is not of Python's own library, in a process that has imported others before."""
    command = [sys.executable, "-c", PROBE, module, *after]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def test_the_package_loads_its_parts_on_demand() -> None:
    assert added_by("sparse_plugins") == {"sparse_plugins", "sparse_plugins.on_demand"}
    core = {name for name in added_by("sparse_plugins.core", "jax", "optax") if not name.startswith("numpy.")}
    assert {floor_of(name) for name in core} == {
        "sparse_plugins",
        "sparse_plugins.core",
        "sparse_plugins.wire",
        "sparse_plugins.on_demand",
    } | ({"sparse_plugins.missing"} & core)


def test_the_top_level_has_the_parts_as_attributes() -> None:
    code = "import sparse_plugins as s; assert s.core.RigL and s.wire.encode and {'fed', 'rl'} <= {*dir(s)}; s.nothing"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == "AttributeError: module 'sparse_plugins' has no attribute 'nothing'"


PUBLIC = [
    f"sparse_plugins.{name}"
    for name in ("core", "wire", "fed", "fed.flower", "rl", "rl.haiku", "rl.dopamine", "keras", "t5", "vision")
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_listed_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert [key for key in module.__all__ if not hasattr(module, key)] == []  # which loads what is loaded on demand
    public = {key for key, value in vars(module).items() if not (key.startswith("_") or isinstance(value, ModuleType))}
    assert public == set(module.__all__)
    assert [key for key in module.__all__ if not has_written_docstring(getattr(module, key))] == []


def has_written_docstring(thing: object) -> bool:
    """Dataclasses and named tuples without a docstring get their signature as one; that does not count."""
    text = inspect.getdoc(thing) or ""
    return bool(text) and not text.startswith(f"{getattr(thing, '__name__', '')}(")
