"""The study on disk, held by one sweep at a time."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from msssm.errors import InputError
from tasks.paths import make_folder
from tasks.sweep.space import Option


@contextmanager
def open_study(
    folder: Path, recipe: str, space: Sequence[Option], mode: Literal["min", "max"]
) -> Iterator[tuple[optuna.Study, int]]:
    """The study of a sweep, new or as it was left, and the descriptor that locks it.

    The lock is free when all who have the descriptor are gone: the trials get it too, so that a sweep that was killed
    is not taken up while its trials still write.

    Raises:
        ValueError: another sweep is at work in the folder, or its study is of another recipe or other options.
    """
    make_folder(folder)
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_WRONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder} is in use by another sweep, or by a trial that it left; wait until it has ended"
            raise InputError(message) from error
        yield _load(folder, {"recipe": recipe, **{f"--vary {o.name}": o.text for o in space}}, mode), lock
    finally:
        os.close(lock)


def _load(folder: Path, question: dict[str, str], mode: Literal["min", "max"]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / "study.log"
    _mend(path)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(path))),
        direction="maximize" if mode == "max" else "minimize",
        load_if_exists=True,
    )
    asked = study.user_attrs.get("question")
    if asked is None:
        study.set_user_attr("question", question)
    elif asked != question:
        changed = sorted(key for key in question.keys() | asked.keys() if question.get(key) != asked.get(key))
        raise InputError(
            f"{folder} holds a sweep that differs in: {', '.join(changed)}; choose another --results or delete it"
        )
    return study


def _mend(path: Path) -> None:
    """Takes away what a process leaves that is killed while it writes: Optuna's own lock, and half a line."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
