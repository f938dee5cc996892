"""What families of studies share: supervised training on optax, and agents in environments."""
