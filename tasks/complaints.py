"""Errors that need no traceback: what the user gave is wrong, and the message says so."""

import errno
import sys
from pathlib import Path

# Refusals of the system, whatever the program does. A missing file is none of them: code that opens a file that the
# user named raises `MissingFileError`.
_REFUSALS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ENAMETOOLONG", "ELOOP", "EMFILE")
}


def complaint(error: BaseException) -> str | None:
    """Message of an error about the input, or None for any other error, including bugs.

    Errors about the input are those that our code raises as such, the system's refusal of a file, and what Lightning
    raises about its options; the outermost of a chain counts.
    """
    # Code that raised one of these has loaded its module; a message must not cost the seconds of importing torch.
    errors, loader = sys.modules.get("msssm.errors"), sys.modules.get("datamodules.loader")
    ours = (errors.InputError,) if errors is not None else ()
    lost_worker = loader.lost_worker if loader is not None else lambda link: None
    link: BaseException | None = error
    while link is not None:
        refused = isinstance(link, OSError) and link.filename is not None and link.errno in _REFUSALS
        if refused or isinstance(link, ours) or _by_lightning(link):
            return str(link) or type(link).__name__
        if (reason := lost_worker(link)) is not None:
            return str(reason)
        link = link.__cause__
    return None


def _by_lightning(error: BaseException) -> bool:
    """Whether a check of Lightning's raised it: of a setting, in Lightning's own file."""
    if type(error).__name__ == "MisconfigurationException":
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    raised_in = "" if traceback is None else Path(traceback.tb_frame.f_code.co_filename).as_posix()
    return type(error) is ValueError and "/site-packages/lightning/" in raised_in
