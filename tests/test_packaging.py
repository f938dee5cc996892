"""The wheel: what is in it, and what it gives in an environment that knows nothing of the repository."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import sparse_plugins

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

PROBE = """
import importlib.metadata, importlib.util, json
import sparse_plugins
print(json.dumps({
    "file": sparse_plugins.__file__,
    "version": sparse_plugins.__version__,
    "metadata": importlib.metadata.version("sparse-plugins"),
    "bare": [name for name in ("core", "fed", "rl") if importlib.util.find_spec(name)],
    "fed": importlib.util.find_spec("sparse_plugins.fed") is not None,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files git knows, so that nothing left in the work tree can get in."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = dist.iterdir()
    return path


def test_wheel_has_one_top_level_name_all_modules_and_the_type_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        header = archive.read(metadata).decode().partition("\n\n")[0]
    package = ROOT / "sparse_plugins"
    beside = ["py.typed", "fed/strokes/strokes.npz", "fed/strokes/LICENSE.txt"]
    sources = [*package.rglob("*.py"), *package.rglob("*.gin"), *(package / name for name in beside)]
    assert names == {path.relative_to(ROOT).as_posix() for path in sources}
    always = {line for line in header.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line}
    assert {line.split(":")[1].split(">")[0].strip() for line in always} == {"jax", "ml_dtypes", "numpy", "optax"}
    assert "License-Expression: Apache-2.0" in header


def test_wheel_installs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*PIP, *install], check=True)
    # jax, optax and numpy are lent by path, after the new packages; links to the repository are not followed.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    probe = subprocess.run([python, "-I", "-c", PROBE], cwd=tmp_path, check=True, capture_output=True, text=True)
    found = json.loads(probe.stdout)
    assert Path(found.pop("file")).parent == site_packages / "sparse_plugins"
    version = sparse_plugins.__version__
    assert found == {"version": version, "metadata": version, "bare": [], "fed": True}
