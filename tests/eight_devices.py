"""Eight devices of the host, in a process of their own, and what its programs make them say to each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_on_eight_devices(script: str, folder: Path) -> Path:
    """Runs a test file as a script, which leaves what it finds in the folder; gives the folder back."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, str(folder)], env={**os.environ, **flags}, timeout=500, check=True)
    return folder


def collectives(program: str) -> str:
    """Kind and shape of everything that devices exchange in a compiled program, a line each."""
    said = re.findall(r"= (.+?) (all-[\w-]+|reduce-scatter|collective-[\w-]+)\(", program)
    return "\n".join(sorted({f"{operation} {shape}" for shape, operation in said}))
