"""From an updater to an optax transformation: the step, the branch that changes masks, and the state."""
