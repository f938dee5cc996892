"""Replay memory on the device, uniform or prioritized."""

from sparse_plugins.rl.replay.memory import Batch, Replay, ReplayState, Row, TargetBatch

__all__ = ["Batch", "Replay", "ReplayState", "Row", "TargetBatch"]
