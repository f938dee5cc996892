"""The command `python -m sparse_plugins.rl.dopamine.convert_old_run FOLDER`: a run of version 0.1.0 for this one.

Checkpoints were pickles then. **Reading them runs whatever is in them: use this for folders that you wrote yourself,
and for no others.** Nothing else in this package reads a pickle, and nothing calls this command.

Old files stay where they are, in a folder 'pickled' beside the checkpoints. Random numbers of Atari games are not
carried over: the next episode begins with a fresh seed, and an Atari game that was under way can't go on.
"""

import argparse
import collections
import hashlib
import pickle
import re
import shutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from sparse_plugins.rl import compat

__all__ = ["convert", "main"]

_SEAL = b"sparse-plugins sha256 "
_ATARI = "AtariEnv"


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
        arguments: What follows the name of the program.

    Returns:
        0 if all checkpoints are converted, 2 if not.
    """
    parser = argparse.ArgumentParser(prog="python -m sparse_plugins.rl.dopamine.convert_old_run", description=__doc__)
    parser.add_argument("folder", type=Path, help="the --base_dir of a run that you wrote yourself")
    parser.add_argument("--i_trust_this_folder", action="store_true", help="run whatever is in its files")
    options = parser.parse_args(arguments)
    if not options.i_trust_this_folder:
        print(
            f"error: the checkpoints in {options.folder} are pickles: reading them runs whatever their writer put into "
            "them. If you wrote them yourself, add --i_trust_this_folder.",
            file=sys.stderr,
        )
        return 2
    try:
        done = convert(options.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"converted the checkpoints of iterations {', '.join(map(str, done))}; the old files are in pickled/")
    return 0


def convert(folder: str | Path) -> list[int]:
    """Writes the checkpoints of an old run anew. Runs whatever is in them.

    Args:
        folder: The run's folder.

    Returns:
        The iterations that were converted.

    Raises:
        ValueError: If there is nothing to convert, or an Atari game was under way; nothing has been changed then.
    """
    compat.import_dopamine()
    checkpoints, kept = Path(folder) / "checkpoints", Path(folder) / "pickled"
    numbers = sorted(
        int(match[1])
        for path in checkpoints.glob("sentinel_checkpoint_complete.*")
        if (match := re.fullmatch(r".*\.(\d+)", path.name)) and _is_pickled(checkpoints / f"ckpt.{match[1]}")
    )
    if not numbers:
        raise ValueError(f"{checkpoints} has no finished checkpoint that is a pickle.")
    new = Path(folder) / "converted.partial"
    shutil.rmtree(new, ignore_errors=True)
    for number in numbers:
        _convert(checkpoints, number, new)
    kept.mkdir(exist_ok=True)
    for number in numbers:
        for name in (str(number), f"ckpt.{number}"):
            shutil.move(checkpoints / name, kept / name)
            shutil.move(new / name, checkpoints / name)
    shutil.rmtree(new)
    return numbers


def _is_pickled(path: Path) -> bool:
    return path.exists() and path.read_bytes()[:1] == b"\x80"


def _convert(checkpoints: Path, number: int, new: Path) -> None:
    from sparse_plugins.rl.dopamine.checkpoints.bundles import bundle_values
    from sparse_plugins.rl.dopamine.checkpoints.logs import log_values
    from sparse_plugins.rl.dopamine.checkpoints.replay_files import replay_file, write_replay
    from sparse_plugins.rl.dopamine.checkpoints.run_folder import SealedCheckpointer

    content, _, digest = (checkpoints / f"ckpt.{number}").read_bytes().rpartition(_SEAL)
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(f"{checkpoints}/ckpt.{number} was cut off or has changed; remove it and its sentinel first.")
    data = pickle.loads(content)
    old, logs = data.pop("run"), data.pop("logs", None)
    data.pop("current_iteration")
    data.pop("replay_checksums", None)
    packed = (checkpoints / str(number) / "replay" / "checkpoint.msgpack").read_bytes()
    write_replay(replay_file(new, number), _replay(packed))
    run = {
        "agent": bundle_values(data),
        "logs": None if logs is None else log_values(logs),
        "run": _run(old, f"the checkpoint of iteration {number}"),
    }
    SealedCheckpointer(str(new), checkpoint_frequency=1).save(number, run)


def _replay(packed: bytes) -> Any:
    from dopamine.jax import serialization

    from sparse_plugins.rl.dopamine.checkpoints.random_states import random_state
    from sparse_plugins.rl.dopamine.checkpoints.replay_files import Contents

    state = msgpack.unpackb(packed, object_hook=serialization.decode, raw=False, strict_map_key=False)
    memory, waiting, sampler = (state[name] for name in ("memory", "transition_accumulator", "sampling_distribution"))
    element, step = pickle.loads(memory["treedef"]), pickle.loads(waiting["treedef"])
    generator = np.random.default_rng()
    generator.bit_generator.state = sampler["rng_state"]
    values = collections.OrderedDict(zip(memory["keys"], map(element.unflatten, memory["values"]), strict=True))
    nodes = sampler["sum_tree"]["nodes"] if "sum_tree" in sampler else None
    return Contents(
        state["add_count"],
        values,
        sampler["key_by_index"],
        random_state(generator),
        # Dopamine forgets the highest priority, and an old run went on with 1 when it was stopped.
        None if nodes is None else (np.array(nodes), 1.0),
        [step.unflatten(leaves) for leaves in waiting["trajectory"]],
    )


def _run(old: dict[str, Any], what: str) -> dict[str, Any]:
    from sparse_plugins.rl.dopamine.checkpoints.random_states import random_state

    episode = old["episode"] or None
    in_episode = not (episode or {}).get("episode_ended", True)
    run = {"steps": old["steps"], "episode": episode, "environment": _snapshot(old["environment"], in_episode, what)}
    if "train_environments" not in old:
        return run
    seeds = np.random.default_rng()
    seeds.bit_generator.state = old["environment_seeds"]
    return run | {
        "environment_seeds": random_state(seeds),
        "num_steps": old["num_steps"],
        "train_environments": [_snapshot(snapshot, True, what) for snapshot in old["train_environments"]],
        "train_state": None if old["train_state"] is None else old["train_state"][:-2],
        "agent_train_state": old["agent_train_state"],
    }


def _snapshot(pickled: bytes, in_episode: bool, what: str) -> list[list[Any]]:
    return [_layer(name, attributes, in_episode, what) for name, attributes in pickle.loads(pickled)]


def _layer(name: str, attributes: dict[str, Any], in_episode: bool, what: str) -> list[Any]:
    from sparse_plugins.rl.dopamine.checkpoints.environment_fields import EPISODE_SUMS, field_values, fields_of_old
    from sparse_plugins.rl.dopamine.checkpoints.random_states import random_state

    layer = types.SimpleNamespace(**attributes, np_random=attributes.get("_np_random"))
    sums = field_values(layer, EPISODE_SUMS) if set(EPISODE_SUMS) <= set(attributes) else None
    if name == _ATARI:
        if in_episode:
            raise ValueError(
                f"{what} was taken in the middle of an Atari game, and only the emulator's own state leads there, "
                "which is no longer read. Let version 0.1.0 end the run."
            )
        seeds, actions = random_state(np.random.default_rng(0)), np.zeros(0, np.uint8)
        return ["LoggedAtari", {"sums": sums, "own": {"seeds": seeds, "seed": None, "actions": actions, "memory": 0}}]
    names = fields_of_old(name, attributes)
    return [name, {"sums": sums, "own": field_values(layer, names)}]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
