"""CIFAR-10 on disk: a published archive, a folder of its files, or folders of images. Nothing is ever unpacked."""

import tarfile
import zlib
from collections.abc import Iterator
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath

from datamodules.cifar10 import images
from msssm.errors import InputError, MissingFileError

ARCHIVES = {  # md5 as published
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}
BATCH_MD5 = {  # of the files of the python version
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_NAMES = tuple(BATCH_MD5)
BATCHES = (_NAMES, tuple(f"{name}.bin" for name in _NAMES))  # python version, binary version
_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_LARGEST = 64 << 20  # bytes; a batch has 31 MB


def find(source: Path) -> Path:
    """Locates the archive, folder of batch files, or folder of class folders that `source` is or contains.

    Raises:
        FileNotFoundError: there is none.
    """
    if source.is_file():
        return source
    for folder in (source / name for name in _FOLDERS):
        if any((folder / names[0]).is_file() for names in BATCHES):
            return folder
    for archive in (source / name for name in ARCHIVES):
        if archive.is_file():
            return archive
    if (top := images.find(source)) is not None:
        return top
    raise MissingFileError(
        f"expected CIFAR-10 in {source}, got neither {' nor '.join(ARCHIVES)} nor a folder of its batches, "
        "nor images as train/<class>/*.png and test/<class>/*.png; put one there, name it as source, or let it be "
        "fetched: --data.download true"
    )


def holds_images(source: Path) -> bool:
    """Whether a result of `find` is class folders of images rather than batches."""
    return source.is_dir() and not any((source / names[0]).is_file() for names in BATCHES)


def digest(source: Path) -> str:
    """md5 of an archive, sha256 of a folder's files; for images, of their names, sizes and times.

    Raises:
        ValueError: the archive is not a published one.
    """
    if holds_images(source):
        return images.listing_digest(source)
    if source.is_dir():
        key = sha256()
        for name, content in read(source):
            key.update(f"{name} {len(content)} ".encode() + sha256(content).digest())
        return key.hexdigest()
    with source.open("rb") as file:
        found = file_digest(file, "md5").hexdigest()
    if found not in ARCHIVES.values():
        raise InputError(
            f"{source} has the md5 {found}, which is not that of {' or '.join(ARCHIVES)}: it is damaged, cut short, or "
            "something else; fetch it again, or, if it holds folders of images, unpack it and name the folder"
        )
    return found


def read(source: Path) -> Iterator[tuple[str, bytes]]:
    """Reads name and content of the six batch files, training before test.

    Raises:
        FileNotFoundError: a folder lacks one.
        ValueError: an archive is damaged or lacks one.
    """
    if source.is_dir():
        names = next(names for names in BATCHES if (source / names[0]).is_file())
        if missing := [name for name in names if not (source / name).is_file()]:
            raise MissingFileError(f"{source} lacks {', '.join(missing)}; take all files of the published archive")
        for name in names:
            yield name, (source / name).read_bytes()
        return
    found = _read_archive(source)
    complete = [names for names in BATCHES if set(names) <= set(found)]
    if not complete:
        missing = [name for name in BATCHES[0] if name not in found and f"{name}.bin" not in found]
        raise InputError(f"{source} lacks {', '.join(missing)}; it is not CIFAR-10, fetch it again")
    for name in complete[0]:
        yield name, found[name]


def _read_archive(source: Path) -> dict[str, bytes]:
    wanted = {name for names in BATCHES for name in names}
    found = {}
    try:
        with tarfile.open(source, "r:gz") as archive:
            for member in archive:
                tarfile.data_filter(member, "/nowhere")  # refuses paths outside the folder, and special files
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile() and member.size <= _LARGEST:
                    content = archive.extractfile(member)
                    assert content is not None  # a file
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{source} is damaged ({error}); fetch it again") from error
    return found
