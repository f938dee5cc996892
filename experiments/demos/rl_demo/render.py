"""An episode of CartPole under a trained policy, as an animated picture."""

import os
from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image

from experiments.demos.rl_demo.cartpole import cartpole_agent, greedy_policy
from experiments.demos.rl_demo.outcomes import Outcome

EVERY = 4  # steps of 20 ms
SIZE = (300, 200)
COLOURS = 32


def render(outcome: Outcome, path: Path, seed: int = 0) -> float:
    """Writes an episode of the policy as a GIF in real time, without a screen.

    Args:
        outcome: The run whose policy acts, greedily.
        path: File to write.
        seed: Of the first state.

    Returns:
        The episode's return.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    act = greedy_policy(cartpole_agent(outcome.pruner, outcome.seed)[0])
    pole = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    state, _ = pole.reset(seed=seed)
    pictures, total, is_over = [], 0.0, False
    while not is_over:
        if int(total) % EVERY == 0:
            picture = Image.fromarray(np.asarray(pole.render())).resize(SIZE, Image.Resampling.LANCZOS)
            pictures.append(picture.quantize(COLOURS))
        action = int(act(outcome.params, state[None])[0])
        state, reward, has_fallen, is_cut_off, _ = pole.step(action)
        total += float(reward)
        is_over = has_fallen or is_cut_off
    pole.close()
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=20 * EVERY, loop=0, optimize=True)
    return total
