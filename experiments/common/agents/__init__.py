"""What studies of sparse agents share: a grid of games, algorithms and sparsities, its rows, tables and figures."""
