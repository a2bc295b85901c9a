"""What is missing or corrupt in a CIFAR-10 on disk."""

from collections.abc import Iterable, Iterator
from hashlib import md5
from pathlib import Path

from datamodules.cifar10 import convert, files, images
from datamodules.cifar10.batches import read_batch
from datamodules.errors import InputError
from datamodules.faults import Fault


def verify(source: Path, converted: Iterable[Path] = ()) -> list[Fault]:
    """Every fault, and none for a whole data set.

    Compares the md5 of an archive, or of the files of a folder of the python version; reads every batch; of class
    folders counts and reads every image; compares conversions with the sha256 that was taken when they were written.

    Args:
        source: archive or folder of `files.find`; only read.
        converted: folders that `convert.convert` made.
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
