"""What arrays are to a computation: layers, their inputs and outputs, stacks of them, and channels that move together.

All of it is read from the jaxpr of a function of parameters and inputs. `flows` says what each primitive does to axes,
`walk` follows values through a whole program, and two readers stand on them: `roles` for the axes of each parameter,
`channels` for the axes that can only shrink together.
"""
