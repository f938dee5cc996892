"""Weights of a learner, where they are needed: versions, deltas and snapshots over any pipe of bytes."""
