"""Atari games in ALE's own vector environment: no gymnasium and no OpenCV on the way from emulator to agent."""

from sparse_plugins.rl.environments.atari.protocols import AtariProtocol, atari_100k, machado
from sparse_plugins.rl.environments.atari.vector import AtariVector

__all__ = ["AtariProtocol", "AtariVector", "atari_100k", "machado"]
