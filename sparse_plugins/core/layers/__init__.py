"""What arrays are to a computation: layers, their inputs and outputs, stacks of them, and channels that move together.

All of it is read from the jaxpr of a function of parameters and inputs. `primitives` says what each of JAX's does to
axes, `jaxpr_walk` follows values through a whole program, and two readers stand on them: `roles` for the axes of each
parameter, `channel_groups` for channels that can only leave together.
"""
