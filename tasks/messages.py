"""Messages to the user on standard error, beside the results on standard output."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def say(message: str) -> None:
    """Prints one line to standard error."""
    print(f"msssm: {message}", file=sys.stderr, flush=True)


def _no_hint(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡")


@contextmanager
def without_hints() -> Iterator[None]:
    """Silences Lightning's hints at its publisher's other products, and its use of what torch has deprecated."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_no_hint)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
            yield
    finally:
        logger.removeFilter(_no_hint)


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
