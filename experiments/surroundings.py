"""What the numbers of a run may depend on besides its settings: for the `config.json` of a run folder."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax


def surroundings(command: str, settings: Mapping[str, Any], packages: Iterable[str]) -> dict[str, Any]:
    """The command, every setting, and commit, platform, devices and versions.

    Args:
        command: What was typed.
        settings: By name; anything that JSON knows.
        packages: Names of the packages whose versions matter.
    """
    return {
        "command": command,
        "settings": settings,
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "packages": versions(packages),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """By package the version that is installed, or None."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of this source, and whether it was changed since; None without a repository or a commit."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
