"""Structures of one half in the other domains: federated handwriting and a DQN on CartPole."""
