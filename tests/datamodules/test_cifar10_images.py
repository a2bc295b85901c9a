"""CIFAR-10 as folders of images: the pixels of the batch files, in an order of their own; or refused by name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from datamodules import SequentialCIFARDataModule
from datamodules.cifar10 import files
from datamodules.cifar10.convert import convert, load
from datamodules.cifar10.images import CLASS_NAMES
from tasks.cli.main import main
from tests.support.cifar10 import ROWS, accept_tiny, images, write_folder

TRAIN = 5 * ROWS


def _square(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels.transpose(1, 2, 0))


def write_images(root: Path, ending: str = ".png") -> Path:
    """The images of the tiny CIFAR-10 as <root>/{train,test}/<class>/<number>.<ending>; returns root."""
    for number, (pixels, label) in enumerate(zip(*images(), strict=True)):
        folder = root / ("train" if number < TRAIN else "test") / CLASS_NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        _square(pixels).save(folder / f"{number:04d}{ending}", "PNG" if ending.lower() == ".png" else "JPEG")
    return root


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accept_tiny(monkeypatch)
    return write_images(tmp_path / "images")


def _expected() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Class by class and by number within, training before test."""
    pixels, labels = images()
    order = [*np.argsort(labels[:TRAIN], kind="stable"), *(TRAIN + np.argsort(labels[TRAIN:], kind="stable"))]
    return pixels[order].reshape(-1, 3, 1024).transpose(0, 2, 1), labels[order]


def test_the_official_classes() -> None:
    assert " ".join(CLASS_NAMES) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_class_folders_give_the_pixels_in_the_order_of_class_and_name(folder: Path, tmp_path: Path) -> None:
    data = load(convert(folder, tmp_path / "out"), verify=True)
    pixels, labels = _expected()
    np.testing.assert_array_equal(data.labels, labels)
    np.testing.assert_array_equal(data.pixels, pixels)
    assert (data.train, data.form) == (TRAIN, "PNG")


@pytest.mark.parametrize("where", ["itself", "above", "below", "link", "links"])
def test_the_folder_is_found_and_links_are_followed(where: str, folder: Path, tmp_path: Path) -> None:
    source = {"itself": folder, "above": folder.parent, "below": folder / "train", "link": tmp_path / "link"}.get(where)
    if where == "link":
        (tmp_path / "link").symlink_to(folder)
    if where == "links":
        source = tmp_path / "links"
        (source / "train").mkdir(parents=True)
        (source / "test").symlink_to(folder / "test")
        for name in CLASS_NAMES[1:]:
            (source / "train" / name).symlink_to(folder / "train" / name)
        (source / "train" / "airplane").mkdir()
        for path in (folder / "train" / "airplane").iterdir():
            (source / "train" / "airplane" / path.name).symlink_to(path)
    assert source is not None
    assert load(convert(source, tmp_path / "out")).digest == load(convert(folder, tmp_path / "other")).digest


def test_names_in_any_case_and_common_ones_for_a_class(folder: Path, tmp_path: Path) -> None:
    digest = load(convert(folder, tmp_path / "other")).digest
    train = (folder / "train").rename(folder / "Train")
    (train / "airplane").rename(train / "plane")
    (train / "automobile").rename(train / "Car")
    (train / "cat").rename(train / "CAT")
    for path in (train / "dog").iterdir():
        path.rename(path.with_suffix(".PNG"))
    assert load(convert(folder, tmp_path / "out")).digest == digest


def test_the_digest_is_that_of_the_pixels(folder: Path, tmp_path: Path) -> None:
    """Of other files with the same pixels it is the same; of one other pixel, another."""

    def digest() -> str:
        data = SequentialCIFARDataModule(root=str(tmp_path), source=str(folder))
        data.prepare_data()
        data.setup("fit")
        return data.digest

    before = digest()
    path = next((folder / "test" / "ship").iterdir())
    with Image.open(path) as image:
        image.load()
    image.save(path, "PNG", compress_level=0)
    assert digest() == before
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))  # type: ignore[misc,union-attr]
    image.save(path, "PNG")
    assert digest() != before
    assert len(list((tmp_path / "cifar10").glob("converted-*"))) == 3, "what changed is read again"


def test_the_split_is_the_permutation_of_this_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ready(source: Path) -> SequentialCIFARDataModule:
        data = SequentialCIFARDataModule(root=str(tmp_path), source=str(source))
        data.prepare_data()
        data.setup("fit")
        return data

    of_images, of_batches = ready(folder), ready(write_folder(tmp_path / "cifar-10-batches-py"))
    assert of_images.split("val").rows.tolist() == of_batches.split("val").rows.tolist()
    held = [{x.tobytes() for x in data.split("val").pixels[data.split("val").rows]} for data in (of_images, of_batches)]
    assert held[0] != held[1]
    tests = [{x.tobytes() for x in data.split("test").pixels[TRAIN:]} for data in (of_images, of_batches)]
    assert tests[0] == tests[1]
    assert of_images.describe()["form"] == "PNG"
    assert of_batches.describe()["form"] == "batch files"


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".png"])
def test_jpeg_is_named_lossy_whatever_the_ending(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_tiny(monkeypatch)
    source = write_images(tmp_path / "images", ".jpeg")
    for path in list(source.rglob("*.jpeg")):
        path.rename(path.with_suffix(ending))
    with pytest.warns(UserWarning, match="120 of 120 images are JPEG, which is lossy"):
        data = load(convert(source, tmp_path / "out"))
    assert data.form == "JPEG (lossy)"
    np.testing.assert_array_equal(data.labels, _expected()[1])
    path = source / "test" / "cat" / sorted(os.listdir(source / "test" / "cat"))[0]
    with Image.open(path) as image:
        assert (data.pixels[TRAIN + 3 * ROWS // 10].reshape(32, 32, 3) == np.asarray(image)).all()


def test_what_systems_leave_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    digest = load(convert(folder, tmp_path / "other")).digest
    picture = next((folder / "train" / "cat").iterdir())
    for name in (".ipynb_checkpoints/x.png", "__MACOSX/cat/._1.png", "cat/._1.png", "cat/@eaDir/1.png", "Thumbs.db"):
        path = folder / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, path)
    with pytest.warns(UserWarning, match=r"left out \._1.png, \.ipynb_checkpoints, @eaDir, Thumbs.db, __MACOSX"):
        assert load(convert(folder, tmp_path / "out")).digest == digest


def _resized(folder: Path) -> None:
    Image.new("RGB", (28, 30)).save(folder / "0.png")


def _mode(mode: str) -> Callable[[Path], None]:
    return lambda folder: Image.new(mode, (32, 32)).save(folder / "0.png")


def _truncated(folder: Path) -> None:
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_resized, r"train/bird/0.png: 28 x 30 pixels of mode RGB, CIFAR-10 has 32 x 32 of mode RGB$"),
        (_mode("L"), "train/bird/0.png: 32 x 32 pixels of mode L,"),
        (_mode("P"), "train/bird/0.png: 32 x 32 pixels of mode P,"),
        (_mode("RGBA"), "train/bird/0.png: 32 x 32 pixels of mode RGBA,"),
        (_mode("1"), "train/bird/0.png: 32 x 32 pixels of mode 1,"),
        (_mode("I;16"), "train/bird/0.png: 32 x 32 pixels of mode I;16,"),
        (_truncated, r"train/bird/00\d\d.png: damaged \(.*truncated"),
        (lambda f: (f / "0.png").write_bytes(b"GIF89a"), r"train/bird/0.png: damaged \(UnidentifiedImageError"),
        (lambda f: (f / "0.png").write_bytes(b""), "train/bird/0.png: damaged"),
    ],
)
def test_an_image_that_is_none_of_cifars_is_named(
    harm: Callable[[Path], Any], complaint: str, folder: Path, tmp_path: Path
) -> None:
    bird = folder / "train" / "bird"
    if harm is not _truncated:
        sorted(bird.iterdir())[0].unlink()
    harm(bird)
    with pytest.raises(ValueError, match=complaint):
        convert(folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("converted-*"))


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda f: shutil.rmtree(f / "test"), "test: no such folder$"),
        (
            lambda f: shutil.rmtree(f / "train" / "frog"),
            r"train/frog: 0 images \(.png, .jpg, .jpeg\), CIFAR-10 has 10$",
        ),
        (lambda f: next((f / "test" / "cat").iterdir()).unlink(), "test/cat: 1 images .*, CIFAR-10 has 2$"),
        (
            lambda f: shutil.copytree(f / "test" / "cat", f / "test" / "lynx"),
            "test/lynx: not one of the classes airplane",
        ),
        (lambda f: _resized(f / "test"), "test/0.png: not one of the classes"),
        (lambda f: shutil.copytree(f / "test" / "cat", f / "test" / "Cat", dirs_exist_ok=True), "test/cat: 4 images"),
    ],
)
def test_what_is_missing_or_too_much_is_named(
    harm: Callable[[Path], Any], complaint: str, folder: Path, tmp_path: Path
) -> None:
    harm(folder)
    with pytest.raises(ValueError, match=complaint):
        convert(folder, tmp_path / "out")


def test_verify_knows_the_form_and_sums_up_by_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert short[2] == f"{folder}: 11 faults (--verbose lists them all)"
    with pytest.raises(SystemExit):
        main([*command, "--verbose"])
    long = capsys.readouterr().out.splitlines()
    assert len(long) == 12
    assert long[-1] == f"{folder}: 11 faults"


def test_batches_come_before_images(folder: Path) -> None:
    write_folder(folder / "cifar-10-batches-py")
    assert files.find(folder) == folder / "cifar-10-batches-py"
