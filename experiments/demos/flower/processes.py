"""A federation of Flower's own processes on this machine: a SuperLink, SuperNodes, and apps that run on them.

Ports are free ones, everything is kept in one folder, and all processes end with the block.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Federation"]

ROOT = Path(__file__).parents[3]
_APP = """
[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "sparse-plugins"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
{config}
"""
_HOME = """
[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


class Federation:
    """A SuperLink and some SuperNodes; use it in a `with` block.

    Args:
        folder: Where their files go: logs, Flower's home, apps.
        nodes: How many SuperNodes; each has its number as `partition-id` in its node config.
        seconds: How long to wait for each of them to start.
        through: From the port of the SuperLink to that to which a node connects, such as one that counts bytes.

    Raises:
        RuntimeError: If the SuperLink does not start; the message has the end of its log.
    """

    def __init__(
        self, folder: Path, nodes: int, seconds: float = 120, through: Callable[[int], int] = lambda port: port
    ) -> None:
        # Flower's processes work in folders of their own
        self._folder = folder.resolve()
        self._count, self._seconds, self._through = nodes, seconds, through
        self._started = contextlib.ExitStack()
        self.nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Federation":
        self._folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._started = stack
            self.port = self._start_link()
            home = self._folder / "home"
            home.mkdir(exist_ok=True)
            (home / "config.toml").write_text(_HOME.format(port=self.port))
            self.nodes = [self.start_node(place) for place in range(self._count)]
            self._started = stack.pop_all()
        return self

    def __exit__(self, *told: object) -> None:
        self._started.close()

    def _start_link(self) -> int:
        """Starts the SuperLink; once more if another process was faster with the port."""
        for attempt in range(3):
            port = _free_port()
            command = ["flower-superlink", "--insecure", "--host=127.0.0.1", f"--port={port}"]
            command += [f"--health-server-address=127.0.0.1:{_free_port()}"]
            link = self._start(command, f"superlink_{attempt}")
            if self._listens(link, port):
                return port
        raise RuntimeError(f"the SuperLink did not start:\n{self.log(f'superlink_{attempt}')[-2000:]}")

    def _listens(self, process: subprocess.Popen[bytes], port: int) -> bool:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            time.sleep(0.1)
        return False

    def start_node(self, place: int) -> subprocess.Popen[bytes]:
        """Starts a SuperNode."""
        command = ["flower-supernode", "--insecure", f"--port={_free_port()}"]
        command.append(f"--superlink=127.0.0.1:{self._through(self.port)}")
        return self._start([*command, f"--node-config=partition-id={place}"], f"supernode_{place}")

    def start_app(self, name: str, server: str, client: str, **config: int | float | str) -> subprocess.Popen[bytes]:
        """Hands an app to the SuperLink.

        Args:
            name: What it is called.
            server: Module with the server's `app`.
            client: Module with the clients' `app`.
            **config: What its run config holds.

        Returns:
            The process that shows its log, until it ends.
        """
        package = name.replace("-", "_")
        folder = self._folder / name
        (folder / package).mkdir(parents=True, exist_ok=True)
        settings = "\n".join(f"{key} = {value!r}" for key, value in config.items())
        (folder / "pyproject.toml").write_text(_APP.format(name=name, package=package, config=settings))
        (folder / package / "__init__.py").write_text("")
        for side, module in (("server", server), ("client", client)):
            (folder / package / f"{side}_app.py").write_text(f"from {module} import app\n\n__all__ = ['app']\n")
        return self._start(["flwr", "run", str(folder), "here", "--stream"], name)

    def run_app(self, name: str, server: str, client: str, seconds: float = 600, **config: int | float | str) -> str:
        """Runs an app to its end.

        Returns:
            Its log.

        Raises:
            TimeoutError: If it takes longer.
        """
        process = self.start_app(name, server, client, **config)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} did not end in {seconds} s:\n{self.log(name)[-4000:]}") from None
        return self.log(name)

    def log(self, name: str) -> str:
        """What a process has written."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _start(self, command: Sequence[str], name: str) -> subprocess.Popen[bytes]:
        # Links are followed no further than the environment: its programs stand beside its Python.
        programs = Path(sys.executable).parent
        environment = {
            **os.environ,
            "FLWR_HOME": str(self._folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "JAX_PLATFORMS": "cpu",
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
            "PYTHONWARNINGS": "ignore",
        }
        log: IO[bytes] = self._started.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [str(programs / command[0]), *command[1:]],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self._started.callback(end, process)
        return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
