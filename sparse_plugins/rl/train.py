"""The command `python -m sparse_plugins.rl.train`: Dopamine's own, for sparse agents.

`--gin_files`, `--gin_bindings` and `--base_dir` mean what they mean there. Ctrl-C and SIGTERM let the iteration under
way end and be saved. Started again with the same flags, a run goes on where it was stopped.
"""

import contextlib
import difflib
import importlib.resources
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from sparse_plugins.rl.stopping import handled

__all__ = ["config_names", "main", "shortcut_bindings"]

_CONFIGS = importlib.resources.files("sparse_plugins") / "rl/dopamine/configs"
# Below whatever the user's files and flags say: one writer of metrics instead of four.
_DEFAULTS = (
    "Runner.use_legacy_logger = False",
    "Runner.fine_grained_print_to_console = False",
    "CollectorDispatcher.collectors = ('tensorboard',)",
)
_SHORTCUTS = {
    "algorithm": "create_updater_from_config.algorithm",
    "pruner": "create_updater_from_config.pruner_type",
    "sparsity": "create_updater_from_config.sparsity",
    "target_policy": "create_sparse_agent.target_policy",
    "agent": "create_sparse_agent.agent_name",
    "seed": "create_sparse_runner.seed",
    "plasticity": "IterationMetrics.plasticity",
}
_OF_UPDATER = ("algorithm", "pruner", "sparsity")


def config_names() -> list[str]:
    """Names of the packaged configurations, for `--config`.

    Example:
        >>> all(name.islower() for name in config_names())
        True
    """
    return sorted(Path(file.name).stem for file in _CONFIGS.iterdir() if file.name.endswith(".gin"))


# What gin adds to a message for each function that it was called through, with addresses.
_CALLER = re.compile(r"\n[^\n]*In call to configurable '([^']+)'[^\n]*")

FLAGS = flags.FLAGS
flags.DEFINE_string("base_dir", None, "Folder of the run; a run that has begun there resumes.")
flags.DEFINE_multi_string("gin_files", [], "Paths of gin files.")
flags.DEFINE_multi_string("gin_bindings", [], "gin bindings, which win over the files: 'JaxDQNAgent.gamma = 0.99'.")
flags.DEFINE_string(
    "config", None, f"A configuration of this package, read before --gin_files: {', '.join(config_names())}."
)
flags.DEFINE_string(
    "algorithm", None, f"Name of the algorithm, such as 'rigl' or 'no_prune'. It binds {_SHORTCUTS['algorithm']}."
)
flags.DEFINE_string("pruner", None, "The paper's name for --algorithm.")
flags.DEFINE_float("sparsity", None, f"Target fraction of zeros. It binds {_SHORTCUTS['sparsity']}.")
flags.DEFINE_string(
    "target_policy",
    None,
    f"When the target network is masked: 'at_mask_update', 'at_sync', ... It binds {_SHORTCUTS['target_policy']}.",
)
flags.DEFINE_string("agent", None, f"Name of the agent, such as 'jax_dqn' or 'sac'. It binds {_SHORTCUTS['agent']}.")
flags.DEFINE_integer("seed", None, "Seed of the agent, its masks and its environments.")
flags.DEFINE_boolean("plasticity", None, "Report dormant units, effective rank and policy churn.")
flags.DEFINE_boolean("plan_only", False, "Print what the run would do, and stop.")


def main(argv: Sequence[str]) -> int:
    """Runs the command; flags have been parsed.

    Args:
        argv: The program's name and what is left of the command line.

    Returns:
        0 if the run is finished, 2 if it could not start; 130 if Ctrl-C stopped it, 143 if SIGTERM did.
    """
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; each value needs its own, like --gin_bindings=... again.")
    if FLAGS.base_dir is None and not FLAGS.plan_only:
        raise app.UsageError(
            f"--base_dir is missing: where is the run to be kept? For --config there are {', '.join(config_names())}."
        )
    try:
        # As Ctrl-C, while nothing is under way that could be saved.
        with handled(signal.SIGTERM, signal.default_int_handler):
            return _run()
    except KeyboardInterrupt:
        print("Stopped before the first iteration; what was saved before is as it was.", file=sys.stderr)
        return 130


def _run() -> int:
    with _quiet():
        import gymnasium

        from sparse_plugins.rl.dopamine import runners
        from sparse_plugins.rl.dopamine.checkpoints import run_folder
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if FLAGS.plan_only else FLAGS.base_dir
        try:
            _configure()
            runner = runners.create_sparse_runner(folder)
        except (
            ValueError,
            TypeError,
            SyntaxError,
            OSError,
            run_folder.CheckpointError,
            gymnasium.error.Error,
        ) as error:
            if FLAGS.verbosity > 0:
                raise
            print(f"error: {_with_near_names(error)}", file=sys.stderr)
            return 2
        if FLAGS.plan_only:
            print(runner.describe_plan())
            return 0
        try:
            status = runner.run_experiment()
        except KeyboardInterrupt:
            status = 130
    if status:
        saved, command = runner.saved_iterations, shlex.join(["python", "-m", "sparse_plugins.rl.train", *sys.argv[1:]])
        print(f"Stopped; {saved} iterations are saved in {folder}. Go on with:\n  {command}", file=sys.stderr)
    return status


def shortcut_bindings(values: dict[str, Any], explicit: Iterable[str] = ()) -> list[str]:
    """Bindings for the flags that stand for one.

    Args:
        values: By flag, its value, or None if it was not given.
        explicit: Bindings given in full.

    Returns:
        Bindings that go between files and explicit bindings.

    Raises:
        ValueError: If an explicit binding says something else.

    Example:
        >>> shortcut_bindings({"sparsity": 0.9, "pruner": None})
        ['create_updater_from_config.sparsity = 0.9']
    """
    stated = dict(map(_parted, explicit))
    bindings = []
    for flag, parameter in _SHORTCUTS.items():
        if values.get(flag) is None:
            continue
        value = repr(values[flag])
        if stated.get(parameter, value).replace('"', "'") != value:
            raise ValueError(
                f"--{flag}={values[flag]} and --gin_bindings='{parameter} = {stated[parameter]}' contradict each "
                "other; give one of them."
            )
        bindings.append(f"{parameter} = {value}")
    return bindings


def _configure() -> None:
    """Reads, in rising order: defaults, packaged configuration, files, shortcuts, bindings."""
    import gin

    files = [*([_packaged(FLAGS.config)] if FLAGS.config is not None else []), *FLAGS.gin_files]
    shortcuts = shortcut_bindings({flag: FLAGS[flag].value for flag in _SHORTCUTS}, FLAGS.gin_bindings)
    gin.parse_config(_DEFAULTS)
    # Bindings are read twice: they may choose the agent that gets the seed, and they win over it.
    gin.parse_config_files_and_bindings(files, [*shortcuts, *FLAGS.gin_bindings], finalize_config=False)
    _overrule_other_name()
    _check_flags_have_effect()
    if FLAGS.seed is not None:
        from sparse_plugins.rl.dopamine.agents import chosen_agent

        gin.parse_config(f"{_seed_taker(chosen_agent()).__name__}.seed = {FLAGS.seed}")
        gin.parse_config(f"create_updater_from_config.rng_seed = {FLAGS.seed}")
    gin.parse_config_files_and_bindings([], FLAGS.gin_bindings)


def _overrule_other_name() -> None:
    """Lets a flag or binding of the algorithm overrule a file that binds the other of its two names."""
    import gin

    from sparse_plugins.rl.dopamine.bindings import bound

    stated = dict(map(_parted, FLAGS.gin_bindings))
    given = {
        flag: FLAGS[flag].value or stated.get(_SHORTCUTS[flag], "").strip("'\"") for flag in ("algorithm", "pruner")
    }
    if len(values := set(filter(None, given.values()))) > 1:
        raise ValueError(f"--algorithm={given['algorithm']} and --pruner={given['pruner']} are one flag; give one.")
    for value in values:
        for flag in given:
            if bound(_SHORTCUTS[flag]) is not None:
                gin.parse_config(f"{_SHORTCUTS[flag]} = {value!r}")


def _check_flags_have_effect() -> None:
    """Refuses flags of the updater that gin describes where gin names another."""
    from sparse_plugins.rl.dopamine.bindings import bound

    updater = bound("create_sparse_agent.updater")
    if isinstance(updater, str) and (given := [f"--{flag}" for flag in _OF_UPDATER if FLAGS[flag].value is not None]):
        raise ValueError(
            f"{', '.join(given)} would have no effect, because create_sparse_agent.updater = {updater!r} is bound: "
            "leave that binding out, or bind create_sparse_agent.sparsity and its like."
        )


def _packaged(name: str) -> str:
    if name not in config_names():
        raise ValueError(f"--config is {name!r}; allowed are {', '.join(config_names())}.")
    return str(_CONFIGS / f"{name}.gin")


def _seed_taker(agent_class: type) -> type:
    """The class whose own constructor has the seed; those of some agents leave it to their parents."""
    return next(base for base in agent_class.__mro__ if "seed" in _parameters(vars(base).get("__init__", object)))


def _parted(binding: str) -> tuple[str, str]:
    parameter, _, value = binding.partition("=")
    return ".".join(parameter.strip().split(".")[-2:]), value.strip()


def _with_near_names(error: Exception) -> str:
    """The message of gin with what is bound, and with names that a misspelt one may have meant."""
    from gin import config

    text = str(error).strip()
    callers = re.findall(_CALLER, text)
    text = re.sub(_CALLER, "", text)
    registry = config._REGISTRY
    if found := re.search(r"No configurable matching '([^']+)'", text):
        known = {selector.rpartition(".")[2] for selector, _ in registry.items()}
        near = difflib.get_close_matches(found[1].rpartition(".")[2], known)
    elif found := re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", text):
        near = difflib.get_close_matches(found[2], _parameters(registry.get_match(found[1]).wrapped))
    else:
        return "\n".join([text, *(_bindings_behind(text, callers[0]) if callers else ())])
    return f"{text}\nDid you mean {' or '.join(near)}?" if near else text


def _bindings_behind(text: str, configurable: str) -> list[str]:
    """The bindings of what gin called that an error names, or whose values it names; all of them if it names none."""
    import gin

    stated = [line.partition(" = ") for line in gin.config_str(max_line_length=10_000).splitlines() if " = " in line]
    matching = [(name, value) for name, _, value in stated if name.split(".")[-2:-1] == [configurable.split(".")[-1]]]
    is_named = lambda word: re.search(rf"(?<![\w.]){re.escape(word)}(?![\w])", text)  # noqa: E731
    behind = [(name, value) for name, value in matching if is_named(name.split(".")[-1]) or is_named(value.strip("'"))]
    return (
        ["It was called with these bindings:", *(f"  {name} = {value}" for name, value in behind or matching)]
        if matching
        else []
    )


def _parameters(configurable: Any) -> list[str]:
    import inspect

    return list(inspect.signature(configurable).parameters)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends to nowhere what libraries print past Python when they are loaded, such as TensorFlow's greetings."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


if __name__ == "__main__":
    app.run(main)
