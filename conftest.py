"""For doctests of single files: pytest runs a module twice whose package, not imported yet, imports it as well."""

import sparse_plugins.core  # noqa: F401

collect_ignore = ["experiments/demos/tunix_sync.py"]  # it imports Tunix, which is installed by hand
