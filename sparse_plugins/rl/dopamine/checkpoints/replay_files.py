"""Dopamine's replay memory in a file of numbers, in place of Dopamine's own files, which are pickles in part.

The frames of a state are compressed in memory (Snappy), and so they are in the file. Every array is read only if the
replay at hand could hold it, and every compressed frame is unpacked once, so that none fails in the midst of a run.
"""

import collections
import contextlib
import functools
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import snappy
import tensorflow as tf
from dopamine.jax.replay_memory import accumulator, elements, replay_buffer, samplers

from sparse_plugins.core.storage.array_files import Blocks, DamagedFileError, StoredArray, open_values, write_values
from sparse_plugins.core.storage.values import fields, listed, refuse, stored_array, whole
from sparse_plugins.rl.dopamine.checkpoints.random_states import random_state, set_random_state
from sparse_plugins.rl.dopamine.episode_ends import WholeEpisodeAccumulator

__all__ = ["Contents", "is_missing", "keep_in_checked_files", "replay_file", "write_replay"]

_ACCUMULATORS = (accumulator.TransitionAccumulator, WholeEpisodeAccumulator)
_SAMPLERS = (
    samplers.UniformSamplingDistribution,
    samplers.PrioritizedSamplingDistribution,
    samplers.SequentialSamplingDistribution,
)
_FRAMES = ("state", "next_state")
_SCALARS = ("action", "reward", "is_terminal", "episode_end")
_STEP = elements.TransitionElement._fields
_CONTENTS = ("add_count", "keys", "elements", "key_by_index", "random", "priorities", "trajectory")
_HIGHEST = 1 << 62
_WIDEST = 1 << 16  # entries of an action
_MOST_ENVIRONMENTS = 1024
_CODES = {np.dtype(char).str for char in "?bhilBHILefd"}


class Contents(NamedTuple):
    """What a replay holds.

    Attributes:
        add_count: Elements that were ever added.
        memory: Elements by key.
        key_by_index: The keys in the order of the sampler.
        random: State of the sampler's random numbers.
        priorities: The nodes of its sum tree and the highest priority it has seen; None for a uniform one.
        trajectory: Transitions of the episode in progress that wait for their successors.
    """

    add_count: int
    memory: dict[int, elements.ReplayElement]
    key_by_index: Sequence[int]
    random: dict[str, Any]
    priorities: tuple[np.ndarray, float] | None
    trajectory: Sequence[elements.TransitionElement]


def keep_in_checked_files(replay: Any, observation_shape: Sequence[int]) -> Any:
    """Gives a replay `save` and `load` that write and read no pickle.

    Args:
        replay: A Dopamine `ReplayBuffer`; anything else is left as it is.
        observation_shape: Shape of what the agent sees; a replay of other observations is not loaded.

    Returns:
        The same replay.
    """
    if isinstance(replay, replay_buffer.ReplayBuffer):
        replay.save = functools.partial(_save, replay)
        replay.load = functools.partial(_load, replay, tuple(observation_shape))
    return replay


def replay_file(checkpoint_dir: str | Path, iteration: int) -> Path:
    """Where the replay of a checkpoint is."""
    return Path(checkpoint_dir) / str(iteration) / "replay.npz"


def is_missing(replay: Any, checkpoint_dir: str | Path, iteration: int) -> bool:
    """Whether there is nothing that a replay of Dopamine's could be read from, not even a dense run's."""
    return isinstance(replay, replay_buffer.ReplayBuffer) and not (Path(checkpoint_dir) / str(iteration)).exists()


def write_replay(path: Path, contents: Contents) -> None:
    """Writes what a replay holds.

    Raises:
        TypeError: If it holds anything but Dopamine's elements, or elements of different shapes.
    """
    memory = [*contents.memory.values()]
    if wrong := [element for element in memory if type(element) is not elements.ReplayElement]:
        raise TypeError(f"the replay holds a {type(wrong[0]).__name__}; checkpoints take Dopamine's ReplayElement.")
    values = {
        "add_count": contents.add_count,
        "keys": np.array([*contents.memory], np.int64),
        "elements": _columns(memory, _SCALARS) | {name: _frames(memory, name) for name in _FRAMES},
        "key_by_index": np.array(contents.key_by_index, np.int64),
        "random": contents.random,
        "priorities": contents.priorities,
        "trajectory": _columns(contents.trajectory, _STEP),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_values(path, values)


def _save(replay: Any, checkpoint_dir: str, iteration_number: int) -> None:
    """In place of `ReplayBuffer.save`; older ones are removed as `checkpoint_duration` says.

    The last but one stays in any case: only the rest of its checkpoint makes this one worth anything.
    """
    _check_known(replay)
    sampler = replay._sampling_distribution
    write_replay(
        replay_file(checkpoint_dir, iteration_number),
        Contents(
            replay.add_count,
            replay._memory,
            sampler._key_by_index,
            random_state(sampler._rng),
            (sampler._sum_tree._nodes, sampler._sum_tree.max_recorded_priority) if _is_prioritized(sampler) else None,
            replay._transition_accumulator._trajectory,
        ),
    )
    kept = max(replay._checkpoint_duration, 2)
    folders = [path.name for path in Path(checkpoint_dir).iterdir() if path.is_dir()]
    for number in sorted(int(name) for name in folders if re.fullmatch("[0-9]{1,18}", name))[:-kept]:
        shutil.rmtree(Path(checkpoint_dir) / str(number), ignore_errors=True)


def _load(replay: Any, observation_shape: tuple[int, ...], checkpoint_dir: str, iteration_number: int) -> None:
    """In place of `ReplayBuffer.load`.

    Raises:
        NotFoundError: If there is no file, as Dopamine's agents expect it.
        DamagedFileError: If the file is not that of such a replay.
    """
    _check_known(replay)
    path = replay_file(checkpoint_dir, iteration_number)
    if not path.exists():
        raise tf.errors.NotFoundError(None, None, f"there is no replay memory {path}")
    with open_values(path) as values:
        _restore(replay, observation_shape, values)


def _restore(replay: Any, observation_shape: tuple[int, ...], values: Any) -> None:
    add_count, keys, stored, key_by_index, random, priorities, trajectory = fields(values, _CONTENTS, "the replay")
    sampler, waiting = replay._sampling_distribution, replay._transition_accumulator
    add_count = whole(add_count, 0, _HIGHEST, "the replay's add_count")
    capacity = replay._max_capacity
    keys = stored_array(keys, "int64", (None,), "the replay's keys", capacity)
    size = len(keys)
    if size and not ((np.diff(keys) > 0).all() and keys[0] >= 0 and keys[-1] < add_count):
        raise DamagedFileError("the replay's keys are not in the order in which elements were added")
    order = stored_array(key_by_index, "int64", (size,), "the sampler's keys")
    if not np.array_equal(np.sort(order), keys):
        raise DamagedFileError("the sampler's keys are not those of the replay")
    tree = _checked_priorities(sampler, priorities, size)
    *frames, action, reward, is_terminal, episode_end = fields(stored, (*_FRAMES, *_SCALARS), "the replay's elements")
    stacked = (*observation_shape, waiting._stack_size)
    states, next_states = (
        _read_frames(frame, size, stacked, replay._compress, name) for frame, name in zip(frames, _FRAMES, strict=True)
    )
    columns = zip(
        states,
        _read_column(action, size, "action"),
        _read_column(reward, size, "reward"),
        next_states,
        _read_column(is_terminal, size, "is_terminal"),
        _read_column(episode_end, size, "episode_end"),
        strict=True,
    )
    memory = collections.OrderedDict(
        (int(key), elements.ReplayElement(*parts)) for key, parts in zip(keys, columns, strict=True)
    )
    steps = _read_trajectory(trajectory, observation_shape, waiting._trajectory.maxlen)
    set_random_state(sampler._rng, random, "the sampler's random numbers")
    sampler._key_by_index = order.tolist()
    sampler._index_by_key = {key: index for index, key in enumerate(sampler._key_by_index)}
    if tree is not None:
        sampler._sum_tree._nodes, sampler._sum_tree.max_recorded_priority = tree
    replay.add_count, replay._memory = add_count, memory
    waiting._trajectory.clear()
    waiting._trajectory.extend(steps)


def _check_known(replay: Any) -> None:
    parts = ((replay._transition_accumulator, _ACCUMULATORS), (replay._sampling_distribution, _SAMPLERS))
    for part, known in parts:
        # gin derives a class of the same name from those that can be configured.
        if type(part).__name__ not in [allowed.__name__ for allowed in known] or not isinstance(part, known):
            raise TypeError(
                f"the replay has a {type(part).__name__}, which can't be saved in a checkpoint; allowed are "
                f"{', '.join(allowed.__name__ for allowed in known)}."
            )


def _is_prioritized(sampler: Any) -> bool:
    return isinstance(sampler, samplers.PrioritizedSamplingDistribution)


def _columns(rows: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray | None]:
    """One array per field; None for no rows, and for a field that is None in all of them."""
    return {name: _column([getattr(row, name) for row in rows], name) for name in names}


def _column(values: list[Any], name: str) -> np.ndarray | None:
    if all(value is None for value in values):
        return None
    arrays = [np.asarray(value) for value in values]
    found = {(array.dtype.kind, array.shape) for array in arrays}
    if len(found) > 1 or arrays[0].dtype.kind not in "biuf":
        raise TypeError(f"the replay has {name}s of different kinds, {sorted(map(str, found))}; checkpoints take one.")
    return np.stack(arrays)


def _frames(memory: list[Any], name: str) -> dict[str, Any] | None:
    """States as they are in memory: compressed, or whole."""
    states = [getattr(element, name) for element in memory]
    if not states or states[0].dtype.names is None:
        return {"whole": _column(states, name)}
    sizes = np.array([state["data"].size for state in states], np.int64)
    shape, dtype = tuple(map(int, states[0]["shape"])), states[0]["dtype"].item()
    if any(tuple(state["shape"]) != shape or state["dtype"].item() != dtype for state in states):
        raise TypeError(f"the replay has {name}s of different shapes; checkpoints take one.")
    data = Blocks(np.uint8, (int(sizes.sum()),), (state["data"].tobytes() for state in states))
    return {"shape": list(shape), "dtype": dtype.decode(), "sizes": sizes, "data": data}


def _read_column(value: Any, size: int, name: str, entries: tuple[int, ...] | None = None) -> Iterable[Any]:
    """Rows of a field, each in memory of its own.

    Args:
        value: What the file has.
        size: How many rows.
        name: Name of the field, for messages.
        entries: Shape of a row, in front of which there may be an axis of environments; None for any small one.
    """
    if value is None:
        return [None] * size
    if not isinstance(value, StoredArray) or not _fits(value.shape[1:], entries):
        refuse(f"the replay's {name}", value, f"{size:,} rows of shape {entries or f'of at most {_WIDEST:,} numbers'}")
    column = stored_array(value, "biuf", (size, *value.shape[1:]), f"the replay's {name}")
    return map(_apart, column)


def _fits(shape: Sequence[int], entries: tuple[int, ...] | None) -> bool:
    if entries is None:
        return int(np.prod(shape, dtype=object)) <= _WIDEST
    environments = shape[: len(shape) - len(entries)]
    return (
        tuple(shape[len(environments) :]) == entries
        and len(environments) <= 1
        and all(0 < count <= _MOST_ENVIRONMENTS for count in environments)
    )


def _apart(row: Any) -> Any:
    """A row that does not keep its column in memory; a truth value as Python's, which some compare by identity."""
    return row.copy() if isinstance(row, np.ndarray) else bool(row) if isinstance(row, np.bool_) else row


def _read_frames(value: Any, size: int, stacked: tuple[int, ...], is_compressed: bool, name: str) -> Iterator[Any]:
    what = f"the replay's {name}s"
    if not (is_compressed and size):
        (column,) = fields(value, ("whole",), what)
        yield from _read_column(column, size, name, stacked)
        return
    shape, code, sizes, data = fields(value, ("shape", "dtype", "sizes", "data"), what)
    shape = tuple(whole(axis, 1, _WIDEST, f"the shape of {what}") for axis in listed(shape, 8, what))
    if not _fits(shape, stacked):
        refuse(f"the shape of {what}", shape, f"{stacked}")
    if code not in _CODES:
        refuse(f"the dtype of {what}", code, "one of numbers")
    nbytes = int(np.prod(shape, dtype=object)) * np.dtype(code).itemsize
    sizes = stored_array(sizes, "int64", (size,), f"the sizes of {what}")
    most = 32 + nbytes + nbytes // 6  # Snappy's own bound
    if not ((sizes > 0) & (sizes <= most)).all():
        raise DamagedFileError(f"{what} are compressed to more than {most:,} bytes, or to none")
    total = int(sizes.sum())
    if not isinstance(data, StoredArray) or data.dtype != np.uint8 or data.shape != (total,):
        refuse(what, data, f"uint8[{total}]")
    for compressed in data.pieces(sizes.tolist()):
        _check_compressed(compressed, nbytes, what)
        yield np.array(
            (np.frombuffer(compressed, np.uint8), shape, code.encode()),
            [("data", "u1", (len(compressed),)), ("shape", "i4", (len(shape),)), ("dtype", f"S{len(code)}")],
        )


def _check_compressed(compressed: bytes, nbytes: int, what: str) -> None:
    """Unpacks once; the length that Snappy would take on trust, and allocate, comes first in the bytes."""
    length = shift = 0
    for byte in compressed[:5]:
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    else:
        length = -1
    with contextlib.suppress(Exception):  # of the extension module, which has several
        if length == nbytes and len(snappy.uncompress(compressed)) == nbytes:
            return
    raise DamagedFileError(f"one of {what} can't be unpacked to {nbytes:,} bytes")


def _checked_priorities(sampler: Any, value: Any, size: int) -> tuple[np.ndarray, float] | None:
    what = "the sampler's priorities"
    if not _is_prioritized(sampler):
        return None if value is None else refuse(what, value, "None")
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], float):
        refuse(what, value, "the nodes of a sum tree and the highest priority")
    tree, highest = sampler._sum_tree, value[1]
    nodes = stored_array(value[0], "float64", tree._nodes.shape, what)
    leaves = nodes[tree._first_leaf_offset :]
    sums = nodes[1::2] + nodes[2::2]
    if not (
        np.isfinite(nodes).all()
        and np.isfinite(highest)
        and (leaves >= 0).all()
        and (leaves[size:] == 0).all()
        and np.allclose(nodes[: len(sums)], sums, rtol=1e-3, atol=1e-6 * (1 + nodes[0]))
    ):
        raise DamagedFileError(f"{what} are not the nodes of a sum tree of {size:,} elements")
    return nodes, highest


def _read_trajectory(
    value: Any, observation_shape: tuple[int, ...], longest: int
) -> Iterator[elements.TransitionElement]:
    columns = fields(value, _STEP, "the trajectory")
    lengths = {column.shape[:1] for column in columns if isinstance(column, StoredArray)} or {(0,)}
    size = lengths.pop()
    if lengths or not size or size[0] > longest:
        raise DamagedFileError(f"the trajectory has more than {longest:,} rows, or not the same in all columns")
    rows = [_read_column(columns[0], size[0], "observation", observation_shape)]
    rows += [_read_column(column, size[0], name) for column, name in zip(columns[1:], _STEP[1:], strict=True)]
    return map(elements.TransitionElement, *rows)
