"""Messages to the user on standard error, beside the results on standard output."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def say(message: str) -> None:
    """Prints one line to standard error."""
    print(f"msssm: {message}", file=sys.stderr, flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's messages on seeds, devices, files and its publisher's other products."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
