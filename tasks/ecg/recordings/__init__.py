"""Answers of a model of PTB-XL about recordings that a user brings. All but `judge` and `card` do without Lightning."""
