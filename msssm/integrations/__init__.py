"""Registries of other libraries that msssm fills when they are imported."""
