"""DQN on Atari games, dense and sparse: the rows of published tables, at any length."""
