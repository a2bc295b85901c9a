"""Checkpoint files: written atomically, with the previous one kept, and stamped with their format."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

from msssm import __version__
from msssm.errors import InputError, MissingFileError, StorageError

FORMAT = 1  # raise it when older code would misread new files; docs/checkpoints.md describes migration
_KEY = "msssm"


class CheckpointFormatError(InputError):
    """Intact checkpoint in a format that this version does not read."""


class DamagedCheckpointError(InputError):
    """File that is damaged, is no checkpoint, or contains more than tensors and plain values."""


def previous(path: Path) -> Path:
    """Path of the copy of the checkpoint that `path` replaced: last.ckpt -> last.previous.ckpt."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Loads tensors and plain values, never code.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFormatError: this version does not read its format; names both.
        DamagedCheckpointError: it cannot be read.
    """
    if not path.is_file():
        raise MissingFileError(f"asked for the checkpoint {path}, got no such file")
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, but does not compare them
            if (member := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {member}")
        checkpoint: Any = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # the unpickler raises almost anything on a damaged file
        raise DamagedCheckpointError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or holds more than tensors and plain "
            "values; take another checkpoint"
        ) from error
    stamp = checkpoint.get(_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(stamp, dict) or stamp.get("format") != FORMAT:
        theirs = (
            f"format {stamp.get('format')!r}, written by msssm {stamp.get('version')}"
            if isinstance(stamp, dict)
            else "no format of msssm"
        )
        raise CheckpointFormatError(
            f"{path} has {theirs}; msssm {__version__} reads format {FORMAT}: see docs/checkpoints.md"
        )
    return checkpoint


class DurableCheckpointIO(CheckpointIO):
    """Checkpoint files that survive a crash: written beside the target, flushed to the disk, then renamed.

    A reader finds the old checkpoint or the new one. Lightning writes through $TMPDIR, which destroys the old
    checkpoint if the disk is full and $TMPDIR on another one, and ignores a denied permission.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes `checkpoint`, and keeps the file that it replaces as `previous(path)`.

        Raises:
            OSError: it cannot be written; says what is kept.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.unfinished")  # one name, so that a killed run leaves at most one
        content = io.BytesIO()
        torch.save({**checkpoint, _KEY: {"format": FORMAT, "version": __version__}}, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                _keep(path)
            os.replace(unfinished, path)
            _sync(path.parent)
        except OSError as error:
            kept = f"{path} is as it was" if path.exists() else "there is none yet"
            size = len(content.getbuffer()) / 2**20
            _discard(unfinished)
            raise StorageError(
                error.errno,
                f"cannot write the checkpoint {path} ({size:.1f} MiB): {error.strerror}; {kept}. Free space or "
                "permit writing there, and run the same command again",
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads as `read_checkpoint`, always with weights_only."""
        return read_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint, and its previous copy."""
        for each in (Path(path), previous(Path(path))):
            each.unlink(missing_ok=True)


def _keep(path: Path) -> None:
    """Gives the file at `path` a second name, so that neither name is ever without an intact file."""
    link = path.with_name(f".{path.name}.previous")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, previous(path))
    else:
        os.replace(link, previous(path))


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # on the way to another error
        return


def _sync(folder: Path) -> None:
    """Flushes renames to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
