"""Original errors of constructors that a parser calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser

from msssm.errors import InputError
from tasks.complaints import enters_our_code, on_purpose, raised_in

OURS = ("msssm.", "datamodules.", "tasks.")


@contextmanager
def constructors(parser: ArgumentParser) -> Iterator[None]:
    """Makes the classes that `parser` builds raise their own errors.

    For an option of several types, such as the trainer's callbacks and loggers, the parser takes any error of a
    constructor for a value of a wrong type, and reports that instead.

    Raises:
        InputError: a class of another package refused its options, or needs a package that is not installed.
    """
    raised: list[Exception] = []

    def build(cls: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return cls(*args, **kwargs)
        except Exception as error:
            raised.append(error)
            if cls.__module__.startswith(OURS) or enters_our_code(error):
                raise
            if isinstance(error, ImportError):
                raised[-1] = InputError(f"{cls.__name__} needs a package that is not installed: {error}")
            elif on_purpose(error):
                raised[-1] = InputError(str(error))
            else:
                raise
            raise raised[-1] from error

    parser.add_instantiator(build, object)  # the last one: Lightning's own for tasks and data precede it
    try:
        yield
        return
    except Exception as error:
        failed = raised[-1] if raised and raised_in(error, "jsonargparse") else error
    raise failed
