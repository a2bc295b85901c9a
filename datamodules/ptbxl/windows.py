"""Windows of a record."""


def window_starts(samples: int, window: int, stride: int) -> list[int]:
    """Starts of the windows, the last of which ends with the record."""
    return sorted({*range(0, samples - window + 1, stride), samples - window})
