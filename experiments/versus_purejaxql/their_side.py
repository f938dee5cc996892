"""PQN by a checkout of purejaxql: its own agent, network, loop and settings."""

import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml  # type: ignore[import-untyped]

from experiments.versus_purejaxql import our_side

# Only its logs and its own command line need them.
NOT_NEEDED: dict[str, Any] = {
    "hydra": {"main": lambda **_: lambda function: function},
    "omegaconf": {"OmegaConf": None},
    "wandb": {},
}


class FiveValues:
    """A game of gymnax 1 whose steps say what those of gymnax 0 said, which purejaxql is written for."""

    def __init__(self, game: Any) -> None:
        self._game = game

    def __getattr__(self, name: str) -> Any:
        return getattr(self._game, name)

    def step(self, *arguments: Any) -> tuple[Any, ...]:
        """Observation, state, reward, whether the episode is over for whatever reason, and what else is known."""
        observation, state, reward, terminated, truncated, info = self._game.step(*arguments)
        return observation, state, reward, terminated | truncated, info


def load(checkout: Path) -> Any:
    """Its module of PQN for MinAtar.

    Args:
        checkout: Folder that holds the package.

    Raises:
        ImportError: If it lacks something that training needs.
    """
    for name, names in NOT_NEEDED.items():
        sys.modules.setdefault(name, types.ModuleType(name)).__dict__.update(names)
    sys.path.insert(0, str(checkout))
    try:
        from purejaxql import pqn_minatar  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(checkout))
    log = pqn_minatar.LogWrapper
    if isinstance(log, type):  # else it is ours already
        pqn_minatar.LogWrapper = lambda game: FiveValues(log(game))
    return pqn_minatar


def settings(checkout: Path, game: str, steps: int) -> dict[str, Any]:
    """What it publishes for MinAtar, with rates and exploration that end with the training."""
    said = yaml.safe_load((checkout / "purejaxql/config/alg/pqn_minatar.yaml").read_text())
    # YAML 1.1 reads 1e7 as text, the reader of purejaxql as a number.
    numbers = {name: float(said[name]) for name in ("TOTAL_TIMESTEPS", "LR", "EPS_START")}
    return {
        **said,
        **numbers,
        "ENV_NAME": f"{game}-MinAtar",
        "TOTAL_TIMESTEPS": steps,
        "TOTAL_TIMESTEPS_DECAY": steps,
        "TEST_DURING_TRAINING": False,
        "WANDB_MODE": "disabled",
    }


def as_ours(params: Any) -> dict[str, dict[str, Any]]:
    """Parameters of its network, under the names of ours; its norm of observations is not used by these settings."""
    torso = params["CNN_0"]
    weights = {"conv_1": torso["Conv_0"], "hidden": torso["Dense_0"], "values": params["Dense_0"]}
    norms = {"conv_1_norm": torso["LayerNorm_0"], "hidden_norm": torso["LayerNorm_1"]}
    return {
        **{name: {"w": layer["kernel"], "b": layer["bias"]} for name, layer in weights.items()},
        **{name: {"scale": layer["scale"], "offset": layer["bias"]} for name, layer in norms.items()},
    }


def run(checkout: Path, game: str, seeds: Sequence[int], steps: int) -> tuple[list[float], float]:
    """Trains all seeds together, and tests their networks as ours are tested.

    Args:
        checkout: Folder that holds the package.
        game: A game of MinAtar.
        seeds: One run each.
        steps: Environment steps of each.

    Returns:
        The return of each seed, and environment steps of all of them per cpu-second.
    """
    train = jax.jit(jax.vmap(load(checkout).make_train(settings(checkout, game, steps))))
    keys = jax.vmap(jax.random.PRNGKey)(np.asarray(seeds, np.uint32))
    compiled = train.lower(keys).compile()
    began = time.process_time()
    ended = jax.block_until_ready(compiled(keys))
    pace = steps * len(seeds) / (time.process_time() - began)
    params = as_ours(ended["runner_state"][0].params)
    tester = our_side.trainer(game, steps)
    state = tester.init(our_side.keys_of(seeds))
    return our_side.evaluated(tester, state._replace(learner=state.learner._replace(params=params))), pace
