"""What a front end checks before the core does."""

from typing import Any

from sparse_plugins.core.base_updater import BaseUpdater

__all__ = ["check_updater"]


def check_updater(updater: Any) -> None:
    """Raises TypeError if `updater` is none."""
    if not isinstance(updater, BaseUpdater):
        given = f"the class {updater.__name__}" if isinstance(updater, type) else f"a {type(updater).__name__}"
        raise TypeError(
            f"updater is {given}; give an updater such as core.RigL(...) or core.create_updater_from_config(...), next "
            "to the dense optimizer and not in its place."
        )
