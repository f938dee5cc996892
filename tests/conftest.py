"""The session is stricter than a user's, and the same every time."""

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# A compilation in one example of many would break a deadline; a failure on one machine should be one on every other.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Tests of sharding make their devices in a process of their own; this one stays as users have it."""
    if (count := jax.local_device_count()) != 1:
        raise pytest.UsageError(f"the suite needs one JAX device in a process, found {count}: unset XLA_FLAGS")
