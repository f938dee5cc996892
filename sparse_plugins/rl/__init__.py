"""Sparsity for reinforcement learning: what acts, learns and is copied, and in which unit steps are counted.

The modules here know no framework; `sparse_plugins.rl.dopamine` brings Dopamine's agents and is loaded, with
TensorFlow, only when it is asked for.
"""

from sparse_plugins.rl import activations as activations
from sparse_plugins.rl import links as links
from sparse_plugins.rl import plasticity as plasticity
from sparse_plugins.rl import redo as redo
from sparse_plugins.rl.clock import Clock
from sparse_plugins.rl.policy import TargetPolicy, is_noise_scale, without_noise_scales

__all__ = ["Clock", "TargetPolicy", "is_noise_scale", "without_noise_scales"]
