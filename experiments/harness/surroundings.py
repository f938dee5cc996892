"""What the numbers of a run may depend on besides its settings: for the `config.json` of a folder."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

OF_A_PROCESS = ("command", "settings", "git", "python", "platform", "devices", "hardware", "packages")


def surroundings(command: str, settings: Mapping[str, Any], packages: Iterable[str]) -> dict[str, Any]:
    """The command, every setting, and commit, platform, hardware and versions.

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
        "hardware": _hardware(),
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


def _hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, and memory of the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": _processor(), "cores": _cores(), "memory_gb": round(memory / 1e9, 1)}


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    """Linux tells the model in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


@functools.cache  # of the source that this process has read, not of what is edited meanwhile
def _git_state() -> dict[str, Any] | None:
    """Commit of this source, and whether it was changed since; None without a repository or a commit."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # What other studies have left is no source.
        changes = git("status", "--porcelain", "--", ":/", ":(top,exclude)experiments/results")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None
