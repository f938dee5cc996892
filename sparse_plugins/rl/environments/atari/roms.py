"""Atari games by any usual spelling of their names, and the files that hold them."""

import contextlib
import difflib
import functools
import importlib
import importlib.metadata
import io
import pathlib
import re
from typing import Any

from sparse_plugins.missing import explain_import_error

__all__ = ["ale", "game_name", "rom_file"]

# The first release that resets some environments of a vector and leaves the others alone.
_OLDEST_ALE = (0, 12, 1)
_NO_PLAYER_ALONE = ("combat", "joust", "maze_craze", "warlords")  # ALE ends the process when it loads one of these


@functools.cache
def ale() -> tuple[Any, Any]:
    """ALE's vector class and its module of ROM files.

    Returns:
        `ALEVectorInterface` and `ale_py.roms`.

    Raises:
        ImportError: If ale-py is not installed, or too old.

    Example:
        >>> ale()[0].__name__
        'ALEVectorInterface'
    """
    newer = '"ale-py>=' + ".".join(map(str, _OLDEST_ALE)) + '"'
    try:
        binding = importlib.import_module("ale_py._ale_py")
        roms = importlib.import_module("ale_py.roms")
    except ImportError as error:
        raise explain_import_error(error, "sparse_plugins.rl.environments.atari", ("ale_py",), newer) from error
    version = importlib.metadata.version("ale-py")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < _OLDEST_ALE:
        raise ImportError(f"ale-py {version} can't reset single environments of a vector; run: pip install {newer}")
    return binding.ALEVectorInterface, roms


def game_name(game: str) -> str:
    """ALE's own name of a game.

    Args:
        game: Such as 'MsPacman', 'ms_pacman', 'ALE/MsPacman-v5' or 'MsPacmanNoFrameskip-v4'.

    Returns:
        The name of its ROM file without suffix.

    Raises:
        ValueError: If there is no such game; the message lists near names.

    Example:
        >>> game_name("ALE/MsPacman-v5")
        'ms_pacman'
    """
    known = {name.replace("_", ""): name for name in ale()[1].get_all_rom_ids() if name not in _NO_PLAYER_ALONE}
    bare = re.sub(r"^ALE/|(NoFrameskip|Deterministic)?-v\d+$", "", str(game))
    squeezed = re.sub(r"[^a-z0-9]", "", bare.lower())
    if squeezed in known:
        return known[squeezed]
    near = [known[name] for name in difflib.get_close_matches(squeezed, known, n=5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"allowed are {', '.join(sorted(known.values()))}."
    raise ValueError(f"there is no Atari game {game!r} for one player; {hint}")


def rom_file(name: str) -> pathlib.Path:
    """The file that holds a game, its checksum compared with ALE's list.

    Args:
        name: A name that `game_name` gave.

    Returns:
        Its path, in the folder that ALE_ROMS_DIR names, or else in ale-py's own.

    Raises:
        FileNotFoundError: If folder or file is missing, or the file is damaged.

    Example:
        >>> rom_file("pong").name
        'pong.bin'
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # ALE prints the folder
            path = pathlib.Path(ale()[1].get_rom_path(name))
    except OSError as error:
        found = " ".join(str(error).rstrip(".").split())
        raise FileNotFoundError(
            f"the ROM file of {name!r} is missing or damaged: {found}. If the environment variable ALE_ROMS_DIR is "
            f"set, unset it or put the right {name}.bin into the folder it names; else run: "
            "pip install --force-reinstall ale-py"
        ) from error
    return path
