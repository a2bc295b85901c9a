"""Profiles of the fuzz tests: `--hypothesis-profile thorough` looks much further than the default."""

from hypothesis import HealthCheck, settings

_PATIENT = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=60, derandomize=True, database=None, **_PATIENT)  # type: ignore[arg-type]
settings.register_profile("thorough", max_examples=5000, **_PATIENT)  # type: ignore[arg-type]
settings.load_profile("quick")
