"""Which errors are about what the user asked for, and need no traceback."""

import dis
import errno
import sys
from pathlib import Path
from types import TracebackType

# What a system refuses whatever the program did right. A file that is not there is none of them: whoever opens one
# that the user named says so, with a `MissingFileError`.
_REFUSALS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ENAMETOOLONG", "ELOOP", "EMFILE")
}
_ROOT = Path(__file__).parent.parent
_OURS = tuple(f"{_ROOT / package}/" for package in ("msssm", "datamodules", "tasks"))
_DOORS = {
    str(_ROOT / "tasks" / f"{name}.py")
    for name in ("main", "commands/cli", "commands/load", "recipes/construct", "recipes/errors", "recipes/parser")
}


def complaint(error: BaseException) -> str | None:
    """The message of an error about the input; None for anything else, a bug included.

    About the input are the errors that our code raises as such, those of a disk that refuses a file, and what
    Lightning raises about the options that it was given; the outermost of a chain counts.
    """
    # Whoever raised one of these has loaded its module; an error must not cost the seconds of importing torch.
    modules = [sys.modules.get(name) for name in ("msssm.errors", "datamodules.errors")]
    ours = tuple(module.InputError for module in modules if module is not None)
    lost_worker = modules[1].lost_worker if modules[1] is not None else lambda link: None
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
    """Whether Lightning raised it on purpose, with no code of ours at work: about an option."""
    return (
        isinstance(error, Exception)
        and not isinstance(error, AssertionError)
        and raised_in(error, "lightning")
        and on_purpose(error)
        and not enters_our_code(error)
    )


def on_purpose(error: BaseException) -> bool:
    """Whether a `raise` raised it, and not Python or a library of C at what cannot be done."""
    [*_, inside] = _frames(error)
    return dis.opname[inside.tb_frame.f_code.co_code[inside.tb_lasti]] == "RAISE_VARARGS"


def raised_in(error: BaseException, package: str) -> bool:
    """Whether a file of an installed package raised it."""
    frames = _frames(error)
    return bool(frames) and f"/site-packages/{package}/" in _file(frames[-1])


def enters_our_code(error: BaseException | None) -> bool:
    """Whether code of ours was at work when it, or what it came from, was raised; all but what hands options on."""
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
