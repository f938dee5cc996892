"""What supervised studies share: a training loop on optax, cells of updaters, rows, tables and figures."""
