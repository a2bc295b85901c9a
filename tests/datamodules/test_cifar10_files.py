"""CIFAR-10's archives: read in both versions, and nothing in them is run, unpacked outside or believed."""

import io
import multiprocessing
import os
import pickle
import resource
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest

from datamodules.cifar10 import convert as converting
from datamodules.cifar10 import files
from datamodules.cifar10.batches import read_batch
from datamodules.cifar10.convert import convert, load
from tests.support.cifar10 import (
    NAMES,
    ROWS,
    accept_tiny,
    binary_batch,
    contents,
    images,
    python_batch,
    write_archive,
    write_folder,
)


def test_the_tiny_batches_are_what_numpy_itself_unpickles() -> None:
    """The oracle of the format: plain pickle, which is safe on what we wrote."""
    pixels, labels = images()
    fields = pickle.loads(python_batch(pixels[:ROWS], labels[:ROWS]), encoding="bytes")
    np.testing.assert_array_equal(fields[b"data"], pixels[:ROWS].reshape(ROWS, -1))
    assert fields[b"labels"] == labels[:ROWS].tolist()


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("kind", ["archive", "folder", "parent"])
def test_every_source_gives_the_same_pixels(
    version: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = images()
    if kind == "archive":
        source = write_archive(tmp_path / f"cifar-10-{version}.tar.gz", contents(version))
    else:
        source = write_folder(tmp_path / "there" / f"cifar-10-batches-{version[:3].replace('pyt', 'py')}", version)
    accept_tiny(monkeypatch, *([source] if kind == "archive" else []))
    data = load(convert(source.parent if kind == "parent" else source, tmp_path / "out"), verify=True)
    assert data.train == 5 * ROWS
    np.testing.assert_array_equal(data.labels, labels)
    expected = [
        [[image[channel, i, j] for channel in range(3)] for i in range(32) for j in range(32)] for image in pixels
    ]
    np.testing.assert_array_equal(data.pixels, expected)


class _Runs:
    """Would touch a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def _swap(batch: bytes, old: bytes, new: bytes) -> bytes:
    assert batch.count(old) == 1
    return batch.replace(old, new)


GLOBALS = {
    "os.system": b"cos\nsystem\n",
    "builtins.eval": b"cbuiltins\neval\n",
    "__builtin__.eval": b"c__builtin__\neval\n",
    "numpy.load": b"cnumpy\nload\n",
    "numpy.core.multiarray.scalar": b"cnumpy.core.multiarray\nscalar\n",
    "numpy._core.multiarray._reconstruct": b"cnumpy._core.multiarray\n_reconstruct\n",
    "numpy.ndarray.tofile": b"\x8c\x05numpy\x8c\x0endarray.tofile\x93",
    "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n",
    "_codecs.encode": b"c_codecs\nencode\n",
}


@pytest.mark.parametrize("name", GLOBALS)
def test_a_pickle_that_names_anything_else_is_refused(name: str) -> None:
    pixels, labels = images()
    batch = python_batch(pixels[:ROWS], labels[:ROWS])
    for old in (b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"):
        with pytest.raises(ValueError, match="which CIFAR-10 does not need"):
            read_batch("data_batch_1", _swap(batch, old, GLOBALS[name]))


def test_hostile_pickles_run_nothing(tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    for content in (
        pickle.dumps(_Runs(harmed), protocol=2),
        pickle.dumps(_Runs(harmed), protocol=5),
        pickle.dumps({b"data": _Runs(harmed), b"labels": [0]}, protocol=0),
    ):
        with pytest.raises(ValueError, match="which CIFAR-10 does not need"):
            read_batch("data_batch_1", content)
    assert not harmed.exists()
    pickle.loads(content)
    assert harmed.exists(), "the same pickle does harm where it is run"


def test_numpy_is_never_called_by_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of 2^60 bytes, one of objects, and a dtype of a made-up size stay the words that they are."""
    pixels, labels = images()
    batch = python_batch(pixels[:ROWS], labels[:ROWS])
    huge = _swap(
        batch, b"cnumpy\nndarray\nK\x00\x85", b"cnumpy\nndarray\n\x8a\x08" + (2**60).to_bytes(8, "little") + b"\x85"
    )
    assert len(read_batch("data_batch_1", huge).labels) == ROWS, "the shape given to _reconstruct is not used"
    wide = _swap(
        batch, b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89", b"J\x00\x00\x00\x7fJ\x00\x00\x00\x7fK\x00tb\x89"
    )
    np.testing.assert_array_equal(read_batch("data_batch_1", wide).images, pixels[:ROWS].reshape(ROWS, -1))
    with pytest.raises(ValueError, match="its data are not bytes"):
        read_batch("data_batch_1", _swap(batch, b"U\x02u1", b"U\x02O8"))


@pytest.mark.parametrize("opcode", [b"r\x00\x00\x00\x7f", b"p2130706432\n"])
def test_a_pickle_gets_no_memory_that_it_only_announces(opcode: bytes) -> None:
    """Kept under the number 2^31 - 2^24, a value would cost 32 GiB."""
    pixels, labels = images()
    batch = python_batch(pixels[:ROWS], labels[:ROWS])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="under a number beyond its size"):
        read_batch("data_batch_1", _swap(batch, b"\x80\x02}", b"\x80\x02}" + opcode))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100 * 1024  # KiB


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "Ran out of input"),
        (b"not a pickle", "invalid load key|could not find|unpickling"),
        (pickle.dumps({b"labels": [1]}, protocol=2), "b'data'|_codecs"),
        (pickle.dumps([1, 2], protocol=2), "list indices"),
        (python_batch(*(a[:ROWS] for a in images()))[:5000], "truncated|Ran out"),
        (_swap(python_batch(*(a[:ROWS] for a in images())), b"K\x00tb\x89T", b"K\x00tb\x88T"), "not bytes in C order"),
        (python_batch(images()[0][:5], images()[1][:5] + 10), "class 1. of 10"),
    ],
)
def test_what_is_no_batch_is_said_to_be_none(content: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^data_batch_3 is not a batch of CIFAR-10 \(.*({complaint})"):
        read_batch("data_batch_3", content)


def test_binary_batches_are_checked_too() -> None:
    pixels, labels = images()
    content = binary_batch(pixels[:ROWS], labels[:ROWS])
    with pytest.raises(ValueError, match="61459 bytes are not rows of 3073"):
        read_batch("test_batch.bin", content[:-1])
    with pytest.raises(ValueError, match="class 200 of 10"):
        read_batch("test_batch.bin", bytes([200]) + content[1:])


def test_an_archive_with_another_digest_is_refused(tmp_path: Path) -> None:
    source = write_archive(tmp_path / "cifar-10-python.tar.gz", contents())
    with pytest.raises(ValueError, match=r"has the md5 [0-9a-f]{32}, which is not that of .*damaged, cut short"):
        convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_archive_is_refused_even_with_its_digest(
    keep: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_archive(tmp_path / "cifar-10-python.tar.gz", contents())
    source.write_bytes(source.read_bytes()[: int(keep * source.stat().st_size)])
    accept_tiny(monkeypatch, source)
    with pytest.raises(ValueError, match="damaged"):
        convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("converted-*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, "outside", "absolute"])
def test_a_hostile_tar_writes_and_reads_nothing_outside(
    kind: bytes | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(contents()["data_batch_1"])
    source = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for name, content in contents().items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            if name == "data_batch_1":
                if isinstance(kind, bytes):
                    member.type, member.linkname, member.size = kind, str(secret), 0
                else:
                    member.name = "../../data_batch_1" if kind == "outside" else str(tmp_path / "absolute/data_batch_1")
            archive.addfile(member, io.BytesIO(content) if member.size else None)
    accept_tiny(monkeypatch, source)
    before = set(tmp_path.rglob("*"))
    if kind == "absolute":  # as `tar` does, the leading slash is dropped, and the file lies inside
        convert(source, tmp_path / "out")
    else:
        with pytest.raises(ValueError, match=r"damaged|lacks data_batch_1"):
            convert(source, tmp_path / "out")
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out")} == before


def test_a_folder_that_lacks_a_batch_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "cifar-10-batches-bin", "binary")
    (folder / "data_batch_4.bin").unlink()
    accept_tiny(monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_4.bin; take all files"):
        convert(folder, tmp_path / "out")


def test_wrong_counts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "cifar-10-batches-py")
    with pytest.raises(ValueError, match="a batch of CIFAR-10 has 10000 images, one of these has 20"):
        convert(folder, tmp_path / "out")
    accept_tiny(monkeypatch)
    pixels, _ = images()
    (folder / "test_batch").write_bytes(python_batch(pixels[-ROWS:], np.zeros(ROWS, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"equal counts, test images have \[20, 0, 0"):
        convert(folder, tmp_path / "out")


def test_no_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected CIFAR-10 in .* name it as source, .* --data.download true"):
        convert(tmp_path, tmp_path)


@pytest.mark.parametrize("moment", ["pixels.npy", "rename"])
def test_a_killed_conversion_is_made_anew(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "cifar-10-batches-py")
    accept_tiny(monkeypatch)
    save = np.save

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def convert_and_die() -> None:
        if moment == "rename":
            os.rename = die  # type: ignore[assignment]
        else:
            np.save = lambda path, array: die(save(path, array[: len(array) // 2]))  # type: ignore[assignment,misc]
        convert(source, tmp_path / "out")

    process = multiprocessing.get_context("fork").Process(target=convert_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").glob("*.unfinished")], "the kill left a half-finished conversion"
    assert not list((tmp_path / "out").glob("converted-*"))
    data = load(convert(source, tmp_path / "out"), verify=True)
    np.testing.assert_array_equal(data.labels, images()[1])
    assert not list((tmp_path / "out").glob("*.unfinished"))


def test_a_conversion_is_made_once_and_outlives_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cifar10"
    source = write_archive(root / "cifar-10-python.tar.gz", contents())
    accept_tiny(monkeypatch, source)
    folder = convert(root, root)
    monkeypatch.setattr(converting, "_build", None)
    assert convert(root, root) == folder
    source.unlink()
    assert convert(root, root) == folder


def test_a_damaged_conversion_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_tiny(monkeypatch)
    folder = convert(write_folder(tmp_path / "cifar-10-batches-py"), tmp_path)
    with (folder / "pixels.npy").open("r+b") as file:
        file.seek(5000)
        file.write(b"rubbish")
    assert len(load(folder).labels) == 6 * ROWS
    with pytest.raises(ValueError, match=r"is damaged .wrong sha256 of the contents.; delete it"):
        load(folder, verify=True)
    with (folder / "pixels.npy").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match=r"is damaged .*; delete it, and it is made again"):
        load(folder)


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_tiny(monkeypatch)
    source = write_folder(tmp_path / "cifar-10-batches-py")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"cannot write .* Read-only file system; choose a root that can be written"):
        convert(source, source)


def test_a_data_set_that_can_only_be_read_is_converted_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_tiny(monkeypatch)
    source = write_folder(tmp_path / "cifar-10-batches-py")
    before = {path: path.stat().st_mtime_ns for path in (source, *source.iterdir())}
    source.chmod(0o555)
    try:
        convert(source, tmp_path / "out")
    finally:
        source.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in (source, *source.iterdir())} == before


def test_the_published_digests() -> None:
    assert files.ARCHIVES == {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    }
    assert NAMES == ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
