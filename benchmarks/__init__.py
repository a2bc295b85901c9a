"""Benchmarks, in a process settled as that of the `msssm` command: what they measure is what a user gets."""

from tasks.process import settle

settle()
