"""Recipes: read, checked and built, with all faults reported at once."""
