"""The life of a run's folder: checkpoints, resuming, provenance."""
