"""The command `python -m sparse_plugins.rl.train`: Dopamine's own, for sparse agents.

`--gin_files`, `--gin_bindings` and `--base_dir` mean what they mean there. Started again with the same flags, a run
goes on where it was stopped.
"""

import contextlib
import difflib
import importlib.resources
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

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

FLAGS = flags.FLAGS
flags.DEFINE_string("base_dir", None, "Folder of the run; a run that has begun there resumes.")
flags.DEFINE_multi_string("gin_files", [], "Paths of gin files.")
flags.DEFINE_multi_string("gin_bindings", [], "gin bindings, which win over the files: 'JaxDQNAgent.gamma = 0.99'.")
flags.DEFINE_string("config", None, "A configuration of this package, read before --gin_files: 'cartpole_dqn'.")
flags.DEFINE_string("algorithm", None, f"For {_SHORTCUTS['algorithm']}: 'magnitude', 'rigl', 'no_prune', ...")
flags.DEFINE_string("pruner", None, "The paper's name for --algorithm.")
flags.DEFINE_float("sparsity", None, f"For {_SHORTCUTS['sparsity']}: fraction of zeros.")
flags.DEFINE_string("target_policy", None, f"For {_SHORTCUTS['target_policy']}: 'at_mask_update', 'at_sync', ...")
flags.DEFINE_string("agent", None, f"For {_SHORTCUTS['agent']}: 'jax_dqn', 'sac', ...")
flags.DEFINE_integer("seed", None, "Seed of the agent, its masks and its environments.")
flags.DEFINE_boolean("plasticity", None, "Report dormant units, effective rank and policy churn.")
flags.DEFINE_boolean("plan_only", False, "Print what the run would do, and stop.")


def main(argv: Sequence[str]) -> int:
    """Runs the command; flags have been parsed.

    Args:
        argv: The program's name and what is left of the command line.

    Returns:
        0 if the run is finished, 2 if it could not start.
    """
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is no flag; each value needs its own, like --gin_bindings=... again.")
    if FLAGS.base_dir is None and not FLAGS.plan_only:
        raise app.UsageError("--base_dir is missing: where is the run to be kept?")
    with _quiet():
        from sparse_plugins.rl.dopamine import runners
        from sparse_plugins.rl.dopamine.checkpoints import run_folder
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if FLAGS.plan_only else FLAGS.base_dir
        try:
            _configure()
            runner = runners.create_sparse_runner(folder)
        except (ValueError, SyntaxError, OSError, run_folder.CheckpointError) as error:
            print(f"error: {_with_near_names(error)}", file=sys.stderr)
            return 2
        if FLAGS.plan_only:
            print(runner.describe_plan())
        else:
            runner.run_experiment()
    return 0


def config_names() -> list[str]:
    """Names of the packaged configurations, for `--config`.

    Example:
        >>> all(name.islower() for name in config_names())
        True
    """
    return sorted(Path(file.name).stem for file in _CONFIGS.iterdir() if file.name.endswith(".gin"))


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
    _use_one_name()
    if FLAGS.seed is not None:
        from sparse_plugins.rl.dopamine.agents import chosen_agent

        gin.parse_config(f"{_seed_taker(chosen_agent()).__name__}.seed = {FLAGS.seed}")
        gin.parse_config(f"create_updater_from_config.rng_seed = {FLAGS.seed}")
    gin.parse_config_files_and_bindings([], FLAGS.gin_bindings)


def _use_one_name() -> None:
    """Lets --algorithm and --pruner overrule a file that binds the other of the two names."""
    from sparse_plugins.rl.dopamine.bindings import bound

    given = {flag: FLAGS[flag].value for flag in ("algorithm", "pruner") if FLAGS[flag].value is not None}
    if len(set(given.values())) > 1:
        raise ValueError(f"--algorithm={given['algorithm']} and --pruner={given['pruner']} are one flag; give one.")
    for value in given.values():
        for flag in ("algorithm", "pruner"):
            if bound(_SHORTCUTS[flag]) is not None:
                import gin

                gin.parse_config(f"{_SHORTCUTS[flag]} = {value!r}")


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
    """The message of gin, and names that a misspelt one may have meant."""
    text = str(error).strip()
    from gin import config

    registry = config._REGISTRY
    if found := re.search(r"No configurable matching '([^']+)'", text):
        known = {selector.rpartition(".")[2] for selector, _ in registry.items()}
        near = difflib.get_close_matches(found[1].rpartition(".")[2], known)
    elif found := re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", text):
        near = difflib.get_close_matches(found[2], _parameters(registry.get_match(found[1]).wrapped))
    else:
        return text
    return f"{text}\nDid you mean {' or '.join(near)}?" if near else text


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
