"""MinAtar's games, dense and sparse: return of DQN or PQN under each sparsity algorithm, many seeds at once."""
