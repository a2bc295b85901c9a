"""Test metrics and their uncertainty, as pure functions of arrays."""
