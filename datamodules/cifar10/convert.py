"""One conversion of CIFAR-10 to a memory map, after which loading is slicing.

<folder>/pixels.npy   (60000, 1024, 3) uint8 in raster order, the training images before the test images
<folder>/labels.npy   (60000,) uint8
<folder>/meta.json    number of training images, format and digest of the source, sha256 of pixels and labels
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.cifar10 import files, images
from datamodules.cifar10.batches import CLASSES, SIDE, read_batch
from datamodules.disk import locked, remedies, written_whole
from datamodules.faults import Fault
from msssm.errors import InputError, MissingFileError

FORMAT_VERSION = 1  # part of the key: raise it when the conversion of the same files changes
ROWS = 10_000  # of a batch file; there are five for training and one for test
BATCH_FILES = "batch files"
_PREFIX = "converted-"


@dataclass(frozen=True)
class Converted:
    """Memory-mapped images (N, 1024, 3) uint8 and classes (N,) uint8; the first `train` are the training set.

    `form` is the format of the source: "batch files", "PNG", or "JPEG (lossy)".
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    train: int
    digest: str
    form: str


def locate(source: Path, parent: Path) -> Path:
    """Folder in `parent` for this source; if the source is gone, that of the only conversion."""
    try:
        key = files.digest(files.find(source))
    except FileNotFoundError:
        if len(finished := sorted(parent.glob(f"{_PREFIX}*"))) == 1:
            return finished[0]
        raise
    return parent / f"{_PREFIX}{sha256(f'{FORMAT_VERSION} {key}'.encode()).hexdigest()[:16]}"


def load(folder: Path, *, verify: bool = False) -> Converted:
    """Memory-maps a conversion; with `verify`, compares its sha256 too.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    if not folder.is_dir():
        raise MissingFileError(f"expected CIFAR-10's pixels in {folder}, got no such folder; call prepare_data() first")
    try:
        meta = json.loads((folder / "meta.json").read_text())
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if pixels.shape != (len(labels), SIDE * SIDE, 3) or pixels.dtype != np.uint8 or labels.dtype != np.uint8:
            raise InputError(f"pixels.npy is {pixels.dtype} of shape {pixels.shape} for {len(labels)} labels")
        if verify and _digest(pixels, labels) != meta["digest"]:
            raise InputError("wrong sha256 of the contents")
        form = str(meta.get("form", BATCH_FILES))
        return Converted(pixels, labels, int(meta["train"]), str(meta["digest"]), form)
    except Exception as error:  # numpy's parser raises almost anything on a damaged header
        raise InputError(f"{folder} is damaged ({error}); delete it, and it is made again") from error


def convert(source: Path, parent: Path) -> Path:
    """Converts the source into `parent` unless that has been done; returns the conversion's folder.

    Args:
        source: archive or folder, see `files.find`; only read.
        parent: where the conversion's folder is created.

    Raises:
        OSError: `parent` cannot be written or the disk is full; says what to do.
        ValueError: the source is not CIFAR-10, or a conversion is damaged.
    """
    folder = locate(source, parent)
    if not folder.is_dir():
        with remedies("CIFAR-10", parent, 180), locked(parent):
            if not folder.is_dir():  # another process may have converted it meanwhile
                _build(files.find(source), folder)
    load(folder)
    return folder


def list_images(source: Path) -> images.Listing:
    """Lists the images of class folders, and checks their number."""
    return images.listing(source, 5 * ROWS // CLASSES, ROWS // CLASSES)


def _read_batches(source: Path) -> images.Images:
    batches = [read_batch(name, content) for name, content in files.read(source)]
    if wrong := [len(batch.labels) for batch in batches if len(batch.labels) != ROWS]:
        raise InputError(f"{source}: a batch of CIFAR-10 has {ROWS} images, one of these has {wrong[0]}")
    labels = np.concatenate([batch.labels for batch in batches])
    for name, part in (("training", labels[:-ROWS]), ("test", labels[-ROWS:])):
        counts = np.bincount(part, minlength=CLASSES)
        if counts.min() != counts.max():
            raise InputError(f"{source}: classes of CIFAR-10 have equal counts, {name} images have {counts.tolist()}")
    planes = np.concatenate([batch.images for batch in batches]).reshape(-1, 3, SIDE * SIDE)
    return images.Images(np.ascontiguousarray(planes.transpose(0, 2, 1)), labels, BATCH_FILES)


def _read_images(source: Path) -> images.Images:
    listed = list_images(source)
    _refuse(source, listed.faults)
    found, faults = images.read(source, listed)
    _refuse(source, faults)
    return found


def _refuse(source: Path, faults: list[Fault]) -> None:
    if faults:
        rest = f"; {len(faults):,} faults in all: msssm data verify cifar10 --source {source}" * (len(faults) > 1)
        raise InputError(f"{source} is not CIFAR-10: {faults[0]}{rest}")


def _build(source: Path, folder: Path) -> None:
    pixels, labels, form = _read_images(source) if files.holds_images(source) else _read_batches(source)
    about = {"train": len(labels) - ROWS, "form": form, "source": files.digest(source)}
    with written_whole(folder) as work:
        np.save(work / "pixels.npy", pixels)
        np.save(work / "labels.npy", labels)
        meta = {**about, "digest": _digest(pixels, labels)}
        (work / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _digest(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> str:
    digest = sha256(np.ascontiguousarray(pixels).data)
    digest.update(labels.tobytes())
    return digest.hexdigest()
