"""The same agent by Dopamine and by this package's own loops: what it learns, and what a step costs."""
