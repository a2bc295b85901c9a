"""The selective scan: `api` checks and chooses, `reference` is the truth, `torch`, `cpu` and `triton` are fast."""
