"""Recipes: read, checked and built, with all complaints at once."""
