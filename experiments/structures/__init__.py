"""Structures of one half, as presets of the federated study and of the agents on CartPole."""
