"""Figures of a test, and how sure they are. Pure functions of arrays."""
