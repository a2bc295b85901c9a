"""What holds for every test: poisoned memory, Triton's interpreter in a process of its own, and hypothesis' profiles.

`--hypothesis-profile thorough` looks much further than the default.
"""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.interpreter import interpreted_apart
from tests.support.poison import poison

# Triton exists for Linux alone.
collect_ignore_glob = [] if sys.platform == "linux" else ["msssm/scan/test_interpreted_*.py"]

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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    interpreted_apart(items)
    # Trainings first: a file of them at the end would be waited for by one worker alone.
    items.sort(key=lambda item: "tasks" not in item.path.parts)
