"""An episode of CartPole under a trained policy, as an animated picture."""

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from experiments.demos.rl_demo.cartpole import greedy_policy

EVERY = 4  # steps of 20 ms
SIZE = (300, 200)
COLOURS = 32


def render(agent: Any, path: Path, seed: int = 0) -> float:
    """Writes an episode of the policy as a GIF in real time, without a screen.

    Args:
        agent: Whose policy acts, greedily.
        path: File to write.
        seed: Seed of the first state.

    Returns:
        The episode's return.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    act = greedy_policy(agent)
    pole = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    state, _ = pole.reset(seed=seed)
    pictures, total, is_over = [], 0.0, False
    while not is_over:
        if int(total) % EVERY == 0:
            picture = Image.fromarray(np.asarray(pole.render())).resize(SIZE, Image.Resampling.LANCZOS)
            pictures.append(picture.quantize(COLOURS))
        action = int(act(agent.sparse_params, state[None])[0])
        state, reward, has_fallen, is_cut_off, _ = pole.step(action)
        total += float(reward)
        is_over = has_fallen or is_cut_off
    pole.close()
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=20 * EVERY, loop=0, optimize=True)
    return total
