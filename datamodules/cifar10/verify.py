"""What is missing or corrupt in a CIFAR-10 on disk."""

from collections.abc import Iterable
from hashlib import md5
from pathlib import Path

from datamodules.cifar10 import convert, files
from datamodules.cifar10.batches import read_batch


def verify(source: Path, converted: Iterable[Path] = ()) -> list[str]:
    """One line per fault, and none for a whole data set.

    Compares the md5 of an archive, or of the files of a folder of the python version; reads every batch; compares
    conversions with the sha256 that was taken when they were written.

    Args:
        source: archive or folder of `files.find`; only read.
        converted: folders that `convert.convert` made.
    """
    faults = []
    try:
        files.digest(source)
        for name, content in files.read(source):
            try:
                rows = len(read_batch(name, content).labels)
            except ValueError as error:
                faults.append(str(error))
                continue
            if rows != convert.ROWS:
                faults.append(f"{name} has {rows} images, not {convert.ROWS}")
            elif md5(content).hexdigest() != files.BATCH_MD5.get(name, md5(content).hexdigest()):
                faults.append(f"{name}: its md5 is not the published one")
    except (OSError, ValueError) as error:
        faults.append(str(error))
    for folder in converted:
        try:
            convert.load(folder, verify=True)
        except ValueError as error:
            faults.append(str(error))
    return faults
