"""The time-invariant scan: `api` checks and chooses, `reference` is the truth, `torch` and `cpu` are fast."""
