"""Recognition of errors about the user's input, which need no traceback."""

import dis
import errno
import sys
from pathlib import Path
from types import TracebackType

# Refusals of the system, whatever the program does. A missing file is none of them: code that opens a file that the
# user named raises `MissingFileError`.
_REFUSALS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ENAMETOOLONG", "ELOOP", "EMFILE")
}
_ROOT = Path(__file__).parent.parent
_OURS = tuple(f"{_ROOT / package}/" for package in ("msssm", "datamodules", "tasks"))
_DOORS = {
    str(_ROOT / "tasks" / f"{name}.py")
    for name in ("cli/main", "cli/training", "cli/load", "recipes/construct", "recipes/errors", "recipes/parser")
}


def complaint(error: BaseException) -> str | None:
    """Message of an error about the input, or None for any other error, including bugs.

    Errors about the input are those that our code raises as such, a disk's refusal of a file, and Lightning's errors
    about its options; the outermost of a chain counts.
    """
    # Code that raised one of these has loaded its module; a message must not cost the seconds of importing torch.
    errors, loader = sys.modules.get("msssm.errors"), sys.modules.get("datamodules.loader")
    ours = (errors.InputError,) if errors is not None else ()
    lost_worker = loader.lost_worker if loader is not None else lambda link: None
    link: BaseException | None = error
    while link is not None:
        refused = isinstance(link, OSError) and link.filename is not None and link.errno in _REFUSALS
        # Lightning is not imported here.
        misconfigured = type(link).__name__ == "MisconfigurationException"
        if refused or misconfigured or isinstance(link, ours) or _by_lightning(link):
            return str(link) or type(link).__name__
        if (reason := lost_worker(link)) is not None:
            return str(reason)
        link = link.__cause__
    return None


def _by_lightning(error: BaseException) -> bool:
    """Whether Lightning raised it deliberately, outside of our code: it is about an option."""
    return (
        isinstance(error, Exception)
        and not isinstance(error, AssertionError)
        and raised_in(error, "lightning")
        and on_purpose(error)
        and not enters_our_code(error)
    )


def on_purpose(error: BaseException) -> bool:
    """Whether a `raise` statement raised it, rather than Python or a C library."""
    [*_, inside] = _frames(error)
    return dis.opname[inside.tb_frame.f_code.co_code[inside.tb_lasti]] == "RAISE_VARARGS"


def raised_in(error: BaseException, package: str) -> bool:
    """Whether a file of an installed package raised it."""
    frames = _frames(error)
    return bool(frames) and f"/site-packages/{package}/" in _file(frames[-1])


def enters_our_code(error: BaseException | None) -> bool:
    """Whether our code, except for that which passes options on, ran when the error or its cause was raised."""
    while error is not None:
        if any(_file(frame).startswith(_OURS) and _file(frame) not in _DOORS for frame in _frames(error)):
            return True
        error = error.__cause__
    return False


def _frames(error: BaseException) -> list[TracebackType]:
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return frames


def _file(frame: TracebackType) -> str:
    return frame.tb_frame.f_code.co_filename
