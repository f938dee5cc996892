"""MinAtar's games, dense and sparse: return of DQN under each sparsity algorithm, many seeds at once."""
