"""Search for missing or corrupt parts of a CIFAR-10 on disk."""

from collections.abc import Iterable, Iterator
from hashlib import md5
from pathlib import Path

from datamodules.cifar10 import convert, files, images
from datamodules.cifar10.batches import read_batch
from datamodules.faults import Fault
from msssm.errors import InputError


def verify(source: Path, converted: Iterable[Path] = ()) -> list[Fault]:
    """Finds all faults of a data set.

    Compares the md5 of an archive, or of a folder's files of the python version; reads every batch; counts and reads
    every image of class folders; compares conversions with the sha256 stored when they were written.

    Args:
        source: archive or folder, see `files.find`; only read.
        converted: folders that `convert.convert` created.
    """
    faults: list[Fault] = []
    try:
        faults += _images(source) if files.holds_images(source) else _batches(source)
    except (OSError, InputError) as error:
        faults.append(Fault(str(source), str(error)))
    for folder in converted:
        try:
            convert.load(folder, verify=True)
        except InputError as error:
            faults.append(Fault(folder.name, str(error)))
    return faults


def _images(source: Path) -> list[Fault]:
    listed = convert.list_images(source)
    _, faults = images.read(source, listed)
    return listed.faults + faults


def _batches(source: Path) -> Iterator[Fault]:
    files.digest(source)
    for name, content in files.read(source):
        try:
            rows = len(read_batch(name, content).labels)
        except InputError as error:
            yield Fault(name, str(error))
            continue
        if rows != convert.ROWS:
            yield Fault(name, f"{name} has {rows} images, not {convert.ROWS}")
        elif md5(content).hexdigest() != files.BATCH_MD5.get(name, md5(content).hexdigest()):
            yield Fault(name, f"{name}: its md5 is not the published one")
