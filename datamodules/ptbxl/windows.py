"""How records are cut into windows."""


def window_starts(samples: int, window: int, stride: int) -> list[int]:
    """Where windows start, the last one at the end of the record."""
    return sorted({*range(0, samples - window + 1, stride), samples - window})
