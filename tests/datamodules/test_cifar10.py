"""CIFAR-10's files: batches that are unpickled only if they are the published ones, folders of images, downloads."""

import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from datamodules import SequentialCIFARDataModule
from datamodules.images import cifar10_files as files
from datamodules.images.cifar10_files import CLASS_NAMES, convert, download, load
from tasks.cli.main import main
from tests.support.cifar10 import META, NAMES, ROWS, accept_tiny, images, write_archive, write_folder

TRAIN = 5 * ROWS
NAME = CIFAR10.filename


def _raster() -> npt.NDArray[np.uint8]:
    """(120, 1024, 3): position 32 i + j of a sequence is the pixel in row i and column j."""
    pixels, _ = images()
    return np.stack([pixels[:, :, i, j] for i in range(32) for j in range(32)], axis=1)


def write_images(root: Path, ending: str = ".png") -> Path:
    """The images of the tiny CIFAR-10 as <root>/{train,test}/<class>/<number>.<ending>; returns root."""
    for number, (pixels, label) in enumerate(zip(*images(), strict=True)):
        folder = root / ("train" if number < TRAIN else "test") / CLASS_NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        image.save(folder / f"{number:04d}{ending}", "PNG" if ending == ".png" else "JPEG")
    return root


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accept_tiny(monkeypatch)
    return write_folder(tmp_path / "there" / "cifar-10-batches-py")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accept_tiny(monkeypatch)
    return write_images(tmp_path / "images")


@pytest.mark.parametrize("kind", ["archive", "its folder", "batches", "their parent", "batches elsewhere"])
def test_every_source_gives_the_same_pixels(
    kind: str, batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = batches.parent if kind == "their parent" else batches
    if "archive" in kind or "its" in kind:
        archive = write_archive(tmp_path / "tar" / NAME)
        accept_tiny(monkeypatch, archive)
        source = archive if kind == "archive" else archive.parent
    if kind == "batches elsewhere":
        source = batches.rename(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (source, *source.glob("*"))}
    data = load(convert(source, tmp_path / "out"), verify=True)
    assert (data.train, data.form) == (TRAIN, "batch files")
    np.testing.assert_array_equal(data.labels, images()[1])
    np.testing.assert_array_equal(data.pixels, _raster())
    assert {path: path.stat().st_mtime_ns for path in (source, *source.glob("*"))} == before, "it is only read"


class _Runs:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [*NAMES, META])
def test_nothing_is_unpickled_but_what_was_published(name: str, batches: Path, tmp_path: Path) -> None:
    (batches / name).write_bytes(pickle.dumps(_Runs(tmp_path / "harmed"), protocol=2))
    with pytest.raises(ValueError, match=rf"is not CIFAR-10: {name} is missing, or its md5 is not the published one;"):
        convert(batches, tmp_path / "out")
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        files.Batches(batches)
    assert not (tmp_path / "harmed").exists()
    pickle.loads((batches / name).read_bytes())
    assert (tmp_path / "harmed").exists(), "the same pickle does harm where it is run"


def test_another_archive_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_archive(tmp_path / NAME)
    with pytest.raises(ValueError, match=rf"{NAME} is missing, or its md5 is not the published one; fetch it again"):
        convert(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
    published = {"data_batch_1": "c99cafc152244af753f735de768cd75f", "test_batch": "40351d587109b95175f43aff81a1287e"}
    assert published.items() <= dict((*files.Batches.train_list, *files.Batches.test_list)).items()
    assert CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"


def test_no_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected CIFAR-10 in .* name it as source, .* --data.download true"):
        convert(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such folder; call prepare_data\(\) first"):
        load(tmp_path / "converted-0")


def test_a_killed_conversion_is_made_anew_and_a_whole_one_kept(
    batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save

    def half_saved(path: Path, array: npt.NDArray[np.uint8]) -> None:
        save(path, array[: len(array) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def convert_and_die() -> None:
        np.save = half_saved  # type: ignore[assignment]
        convert(batches, tmp_path / "out")

    process = multiprocessing.get_context("fork").Process(target=convert_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "out").glob("*.unfinished"))
    assert not list((tmp_path / "out").glob("converted-*"))
    whole = convert(batches, tmp_path / "out")
    np.testing.assert_array_equal(load(whole, verify=True).labels, images()[1])
    assert not list((tmp_path / "out").glob("*.unfinished"))
    monkeypatch.setattr(files, "_store", None)
    assert convert(batches, tmp_path / "out") == whole


def test_a_damaged_conversion_is_named(batches: Path, tmp_path: Path) -> None:
    folder = convert(batches, tmp_path)
    with (folder / "pixels.npy").open("r+b") as file:
        file.seek(5000)
        file.write(b"rubbish")
    assert len(load(folder).labels) == 6 * ROWS
    with pytest.raises(ValueError, match=r"is damaged .wrong sha256 of the contents.; delete it"):
        load(folder, verify=True)
    (folder / "pixels.npy").write_bytes((folder / "pixels.npy").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"is damaged .*; delete it, and it is made again"):
        load(folder)


def test_a_folder_that_cannot_be_written_says_so(batches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"cannot write .* Read-only file system; choose a root that can be written"):
        convert(batches, batches)


def test_class_folders_come_in_the_order_of_class_and_name(folder: Path, tmp_path: Path) -> None:
    """Links are followed, what systems leave is not, and the pixels are those of the batch files."""
    real = (folder / "test").rename(tmp_path / "elsewhere")
    (folder / "test").symlink_to(real)
    for name in (".ipynb_checkpoints/x.png", "cat/._1.png", "cat/@eaDir/1.png", "Thumbs.db"):
        (folder / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "train" / name).touch()
    data = load(convert(folder, tmp_path / "out"), verify=True)
    labels = images()[1]
    order = [*np.argsort(labels[:TRAIN], kind="stable"), *(TRAIN + np.argsort(labels[TRAIN:], kind="stable"))]
    np.testing.assert_array_equal(data.labels, labels[order])
    np.testing.assert_array_equal(data.pixels, _raster()[order])
    assert (data.train, data.form) == (TRAIN, "PNG")
    assert " ".join(CLASS_NAMES) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_what_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    path = next((folder / "test" / "ship").iterdir())
    with Image.open(path) as image:
        image.load()
    before = load(convert(folder, tmp_path / "out"))
    for colour in (image.getpixel((0, 0)), (1, 2, 3)):
        image.putpixel((0, 0), colour)  # type: ignore[arg-type]
        image.save(path, "PNG", compress_level=0)
        after = load(convert(folder, tmp_path / "out"))
        assert (after.pixels != before.pixels).any(-1).sum() == (colour == (1, 2, 3))
    assert len(list((tmp_path / "out").glob("converted-*"))) == 3


def test_jpeg_is_named_lossy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_tiny(monkeypatch)
    source = write_images(tmp_path / "images", ".jpeg")
    path = sorted((source / "test" / "cat").iterdir())[0].rename(source / "test" / "cat" / "0.png")
    with pytest.warns(UserWarning, match="120 of 120 images are JPEG, which is lossy"):
        data = load(convert(source, tmp_path / "out"))
    assert data.form == "JPEG (lossy)"
    with Image.open(path) as image:
        assert (data.pixels[TRAIN + 3 * ROWS // 10].reshape(32, 32, 3) == np.asarray(image)).all()


def _swapped(image: Image.Image | bytes) -> Callable[[Path], Any]:
    """Puts something else in the place of one training image."""

    def swap(folder: Path) -> None:
        sorted((folder / "train/bird").iterdir())[0].unlink()
        path = folder / "train/bird/0.png"
        path.write_bytes(image) if isinstance(image, bytes) else image.save(path)

    return swap


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_swapped(Image.new("RGB", (28, 30))), "train/bird/0.png: 28 x 30 pixels of mode RGB, CIFAR-10 has 32 x 32"),
        (_swapped(Image.new("L", (32, 32))), "train/bird/0.png: 32 x 32 pixels of mode L,"),
        (_swapped(Image.new("RGBA", (32, 32))), "train/bird/0.png: 32 x 32 pixels of mode RGBA,"),
        (_swapped(b"GIF89a"), r"train/bird/0.png: damaged \(UnidentifiedImageError"),
        (lambda f: shutil.rmtree(f / "test"), r"test/airplane: 0 images .*; 10 faults in all: msssm data verify"),
        (lambda f: shutil.rmtree(f / "train/frog"), r"train/frog: 0 images \(.png, .jpg, .jpeg\), CIFAR-10 has 10"),
        (lambda f: shutil.copy(next((f / "test/cat").iterdir()), f / "test/cat/0.PNG"), "test/cat: 3 images .* has 2"),
    ],
)
def test_what_is_not_cifar_is_named(harm: Callable[[Path], Any], complaint: str, folder: Path, tmp_path: Path) -> None:
    harm(folder)
    with pytest.raises(ValueError, match=complaint):
        convert(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("converted-*"))


def test_verify_sums_up_by_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "verify", "cifar10", "--source", str(folder)]
    main(command)
    assert capsys.readouterr().out == f"{folder}: whole\n"
    for path in (folder / "train" / "deer").iterdir():
        path.write_bytes(b"")
    next((folder / "test" / "cat").iterdir()).unlink()
    with pytest.raises(SystemExit):
        main(command)
    short = capsys.readouterr().out.splitlines()
    assert short[0] == "test/cat: 1 images (.png, .jpg, .jpeg), CIFAR-10 has 2"
    assert short[1].startswith("train/deer: 10 faults of what is there, the first: train/deer/00")
    assert short[2:] == [f"{folder}: 11 faults (--verbose lists them all)"]


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """One that has no such file, one that has another, and one that has the archive."""
    archive = write_archive(tmp_path / "published" / "c" / NAME)
    accept_tiny(monkeypatch, archive)
    (tmp_path / "published" / "b").mkdir()
    (tmp_path / "published" / "b" / NAME).write_text("<html>moved</html>")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "published")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield [f"http://127.0.0.1:{server.server_address[1]}/{mirror}/{NAME}" for mirror in "abc"]
        server.shutdown()
        thread.join()


def test_the_first_mirror_that_has_the_archive_gives_it(mirrors: list[str], tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"could not fetch .*/a/.*404.*; .*/b/.*corrupted"):
        download(tmp_path / "data", mirrors[:2])
    download(tmp_path / "data", mirrors)
    assert (tmp_path / "data" / NAME).read_bytes() == (tmp_path / "published" / "c" / NAME).read_bytes()
    download(tmp_path / "data", mirrors[:1])  # it is there
    assert all(url.startswith("https://") and url.endswith(f"/{NAME}") for url in files.MIRRORS)


def test_the_data_module_downloads_only_when_asked(
    mirrors: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "download", lambda folder: download(folder, mirrors))
    with pytest.raises(FileNotFoundError, match=r"--data.download true"):
        SequentialCIFARDataModule(root=str(tmp_path)).prepare_data()
    assert not (tmp_path / "cifar10").exists()
    data = SequentialCIFARDataModule(root=str(tmp_path), download=True, batch_size=10)
    data.prepare_data()
    data.setup("fit")
    assert data.describe()["counts"] == {"train": 90, "val": 10, "test": 20}
