"""The commands of `msssm`, one module each."""
