"""From an updater to an optax transformation: the step, the branch that updates masks, and the state."""
