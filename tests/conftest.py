"""Poisoned memory for every test, and profiles: `--hypothesis-profile thorough` looks much further than the default."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.poison import poison

_PATIENT = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=60, derandomize=True, database=None, **_PATIENT)  # type: ignore[arg-type]
settings.register_profile("thorough", max_examples=5000, **_PATIENT)  # type: ignore[arg-type]
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What nobody has written is NaN."""
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        yield
