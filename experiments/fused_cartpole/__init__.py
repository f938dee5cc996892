"""DQN on CartPole in one program for all seeds: how many solve it, dense and sparse, and what sparsity costs a step."""
