"""One line to the user, beside the answers on standard output."""

import sys


def say(message: str) -> None:
    """Prints `message` to standard error."""
    print(f"msssm: {message}", file=sys.stderr, flush=True)
