"""ImageNet's layouts: pictures, labels, transforms, shares, seeds, mixing, exact resumption, and bad input."""

import io
import random
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader

from datamodules import Batch, ImageNetDataModule
from datamodules.images.batches import ImageSampler
from datamodules.images.readers import MEAN_COLOUR, decode, seeded
from tests.support.images import CLASSES, jpeg, picture, write_folder, write_tars
from tests.support.recorder import steps_after_each_checkpoint
from tests.support.tolerances import FLOAT32, METRIC, assert_near

SMALL: dict[str, Any] = {"image_size": 16, "batch_size": 4, "num_workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 training and 9 validation images; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("images") / "imagenet")


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "imagenet")


def _data(source: Path, **options: Any) -> ImageNetDataModule:
    data = ImageNetDataModule(source=str(source), **{**SMALL, **options})
    data.setup("fit")
    return data


def _on(data: ImageNetDataModule, rank: int, world_size: int) -> ImageNetDataModule:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return data


def _batches(data: ImageNetDataModule, split: str, epoch: int = 0) -> list[Batch]:
    loader = getattr(data, f"{split}_dataloader")()
    loader.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def _keys(batches: list[Batch]) -> list[bytes]:
    return [x.numpy().tobytes() for batch in batches for x in batch.x]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_timms(folder: Path, workers: int) -> None:
    """Images and labels of timm's own loader, in the order of the files."""
    loader = create_loader(
        create_dataset("", root=str(folder), split="val"),
        (3, 16, 16),
        batch_size=9,
        interpolation="bicubic",
        num_workers=0,
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    ((expected, labels),) = list(loader)
    data = _data(folder, num_workers=workers)
    for batches in (_batches(data, "val"), _batches(data, "test")):
        assert torch.cat([b.y for b in batches]).tolist() == labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        torch.testing.assert_close(torch.cat([b.x for b in batches]), expected, rtol=0, atol=METRIC)
        assert torch.cat([b.lengths for b in batches]).tolist() == [256] * 9


def test_a_tar_is_its_folder(folder: Path, tmp_path: Path) -> None:
    tars = write_tars(tmp_path / "tars", folder)
    before = {path: path.stat().st_mtime_ns for path in (folder, tars)}
    one, other = _data(folder), _data(tars)
    for split in ("train", "val"):
        for a, b in zip(_batches(one, split), _batches(other, split), strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)
    assert {path: path.stat().st_mtime_ns for path in (folder, tars)} == before, "nothing is written beside them"


def test_crop_pct_takes_the_centre(tmp_path: Path) -> None:
    source = write_folder(tmp_path, train=1, val=1, classes=("a",))
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[8:24, 8:24] = 255
    Image.fromarray(pixels).save(source / "val" / "a" / "a_0.JPEG", "PNG")  # one such file is in ImageNet
    (batch,) = _batches(_data(source, crop_pct=0.5, batch_size=1), "val")
    white = (1 - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(IMAGENET_DEFAULT_STD)
    torch.testing.assert_close(batch.x[0], white.view(3, 1, 1).expand(3, 16, 16), rtol=0, atol=FLOAT32)


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_the_nearest_of_eight(kind: str) -> None:
    values = np.arange(65536).astype(np.uint16).reshape(256, 256)
    image, reason = decode(_saved(Image.fromarray(values), kind))
    assert (image.mode, reason) == ("RGB", None)
    assert (np.asarray(image) == ((values + 128.0) // 257)[..., None]).all()


def test_cmyk_is_converted_by_its_formula() -> None:
    ink = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    image, reason = decode(_saved(Image.fromarray(ink, mode="CMYK"), "TIFF"))
    assert reason is None
    c, k = ink[..., :3].astype(float), ink[..., 3:].astype(float)
    assert np.abs(np.asarray(image) - (255 - c) * (255 - k) / 255).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_other_modes_become_three_channels(mode: str) -> None:
    image, reason = decode(_saved(picture(0).convert(mode), "PNG"))
    assert (image.mode, image.size, reason) == ("RGB", (40, 30), None)
    if mode in ("1", "L", "LA"):
        assert (np.asarray(image) == np.asarray(picture(0).convert(mode[0]).convert("L"))[..., None]).all()


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (b"", "cannot identify"),
        (b"<html></html>", "cannot identify"),
        (jpeg(1, 256, 256)[:3000], "truncated"),
        (_saved(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"), "from 0.5 to 0.5 are not integers of 16"),
        (_saved(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF"), "from 0 to 70000 are not integers of 16"),
    ],
)
def test_what_is_damaged_has_the_mean_colour(content: bytes, damage: str) -> None:
    image, reason = decode(content)
    assert reason is not None
    assert damage in reason
    assert image.getcolors() == [(32 * 32, MEAN_COLOUR)]


def test_a_seed_is_local() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr]

    before = states()
    with seeded(5):
        first = draw()
    with seeded(5):
        assert draw() == first
    with pytest.raises(ZeroDivisionError), seeded(5):
        draw()[0] / 0
    with seeded(6):
        assert all(a != b for a, b in zip(draw(), first, strict=True))
    assert states() == before


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_validation_image_is_seen_exactly_once(folder: Path, processes: int) -> None:
    whole = Counter(_keys(_batches(_data(folder), "val")))
    assert whole.total() == len(whole) == 9
    shares = [_batches(_on(_data(folder), rank, processes), "val") for rank in range(processes)]
    assert Counter(key for share in shares for key in _keys(share)) == whole
    samples = [int(s) for share in shares for batch in share for s in batch.sample_index]  # type: ignore[union-attr]
    assert sorted(samples) == list(range(9))
    labels = [int(y) for share in shares for batch in share for y in batch.y]
    assert [y for _, y in sorted(zip(samples, labels, strict=True))] == [0] * 3 + [1] * 3 + [2] * 3
    assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize("processes", [2, 4])
def test_training_batches_do_not_depend_on_the_number_of_processes(folder: Path, processes: int) -> None:
    whole = _batches(_data(folder, batch_size=8), "train", epoch=3)
    shares = [
        _batches(_on(_data(folder, batch_size=8), rank, processes), "train", epoch=3) for rank in range(processes)
    ]
    assert [len(share) for share in shares] == [len(whole)] * processes == [2] * processes
    for step, batch in enumerate(whole):
        assert sorted(_keys([batch])) == sorted(key for share in shares for key in _keys([share[step]]))


def test_augmentation_is_a_function_of_seed_and_epoch_for_any_workers(folder: Path) -> None:
    options: dict[str, Any] = {
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.5,
        "mixup": 0.8,
        "cutmix": 1.0,
    }
    torch.manual_seed(1)
    first = _batches(_data(folder, **options), "train", epoch=2)
    torch.manual_seed(2)
    for workers in (0, 2):
        again = _batches(_data(folder, num_workers=workers, **options), "train", epoch=2)
        assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first, again, strict=True))
    keys = [
        _keys(_batches(_data(folder, shuffle_seed=s, **options), "train", epoch=e)) for s, e in ((0, 2), (0, 3), (1, 2))
    ]
    assert len(set(keys[0]) | set(keys[1]) | set(keys[2])) == 3 * 16


def test_the_models_random_numbers_do_not_depend_on_the_augmentation(folder: Path) -> None:
    data = _data(folder, rand_augment="rand-m9", random_erasing=1.0, mixup=1.0)
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    _batches(data, "train")
    assert torch.equal(torch.rand(4), expected)


def test_repeated_augmentation() -> None:
    first, other = (ImageSampler(18, 3, repeats=3, seed=0, rank=rank, world_size=2) for rank in range(2))
    batches = [a + b for a, b in zip(first, other, strict=True)]
    for keys in batches:
        assert sorted(Counter(key % 18 for key in keys).values()) == [3, 3], "two images, three copies each"
        assert len(set(keys)) == 6, "each with a seed of its own"
    assert len(batches) == 3
    assert len({key % 18 for keys in batches for key in keys}) == 18 // 3


def test_mixup_and_cutmix_mix_pixels_and_labels_alike(folder: Path) -> None:
    """One channel of the pictures is made to tell the class: the share of each class can be read from the pixels."""
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        data = _data(folder, batch_size=6, **options)
        for batch in data.train_dataloader():
            colour = torch.tensor([0, 100, 200], dtype=torch.uint8)[batch.y].view(-1, 1, 1, 1)
            told = batch._replace(x=colour.expand_as(batch.x).clone())
            mixed = data.on_after_batch_transfer(told, 0)
            assert mixed.y.shape == (6, 3)
            assert mixed.y.dtype == torch.float32
            assert_near(mixed.y.sum(1), torch.ones(6), METRIC)
            mean, std = (torch.tensor(c).view(3, 1, 1) for c in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
            shade = ((mixed.x * std + mean) * 255).mean((1, 2, 3))
            assert_near(shade, mixed.y @ torch.tensor([0.0, 100.0, 200.0]), FLOAT32)
        assert all(batch.y.dtype == torch.int64 for batch in _batches(data, "val")), "evaluation is not mixed"


def test_random_erasing_erases_with_noise(folder: Path) -> None:
    data, plain = _data(folder, random_erasing=1.0), _data(folder)
    for a, b in zip(_batches(data, "train"), _batches(plain, "train"), strict=True):
        erased = (a.x != b.x).any(1).float().mean((1, 2))
        assert (erased > 0.01).all()
        assert (erased < 0.4).all()
    assert _keys(_batches(data, "val")) == _keys(_batches(plain, "val"))


def test_holdout_validates_on_training_images(folder: Path) -> None:
    data = _data(folder, holdout=5)
    assert data.describe()["counts"] == {"train": 13, "val": 5, "test": 9}
    train, val = data.split("train"), data.split("val")
    assert sorted([*train.rows, *val.rows]) == list(range(18))
    assert _keys(_batches(data, "test")) == _keys(_batches(_data(folder), "val"))
    with pytest.raises(ValueError, match="asked to hold out 18 of 18 training images"):
        _data(folder, holdout=18)


def test_provenance(folder: Path, own_folder: Path) -> None:
    about = _data(folder).describe()
    assert about.pop("digest") == _data(own_folder).digest
    assert about == {
        "counts": {"train": 18, "val": 9, "test": 9},
        "classes": 3,
        "image_size": 16,
        "crop_pct": 0.875,
        "damaged": {"train": [], "val": [], "test": []},
    }
    path = own_folder / "val" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    changed = _data(own_folder).digest
    path.rename(path.with_name("x.JPEG"))
    assert len({changed, _data(own_folder).digest, _data(folder).digest}) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_every_checkpoint_continues_exactly(folder: Path, tmp_path: Path, workers: int) -> None:
    def data() -> ImageNetDataModule:
        options = {"random_erasing": 0.5, "mixup": 0.5, "num_workers": workers}
        return ImageNetDataModule(source=str(folder), **{**SMALL, **options})

    def note(batch: Batch) -> tuple[float, float]:
        return batch.x.double().sum().item(), (batch.y[:, 1] + 2 * batch.y[:, 2]).double().sum().item()

    whole, resumed = steps_after_each_checkpoint(tmp_path, data, note)
    assert len(set(whole)) == 8
    assert resumed == {done: whole[done:] for done in range(1, 8)}


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_named_counted_and_limited(own_folder: Path, workers: int) -> None:
    (own_folder / "val" / CLASSES[1] / f"{CLASSES[1]}_1.JPEG").write_bytes(jpeg(1)[:-200])
    (own_folder / "val" / CLASSES[2] / f"{CLASSES[2]}_2.JPEG").write_bytes(b"")
    names = [f"{name}/{name}_{number}.JPEG" for name, number in ((CLASSES[1], 1), (CLASSES[2], 2))]
    with pytest.raises(ValueError, match=rf"2 damaged .* val images .*: {', '.join(names)}. .*--data.max_corrupt 2"):
        _batches(_data(own_folder, max_corrupt=1, batch_size=9, num_workers=workers), "val")
    data = _data(own_folder, max_corrupt=2, num_workers=workers)
    for _ in range(2):
        assert sum(len(batch.y) for batch in _batches(data, "val")) == 9
        assert data.describe()["damaged"] == {"train": [], "val": names, "test": names}, "each counts once"


ADVICE = r"; .*one folder of images per class, .*torchvision.datasets.ImageNet\(folder, split\) unpacks the official"


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (
            lambda f: shutil.rmtree(f / "val"),
            f"expected the val images in .*/val or .*/val.tar, got neither{ADVICE}",
        ),
        (lambda f: shutil.rmtree(f / "train"), r"expected the train images in"),
        (
            lambda f: shutil.rmtree(f / "train" / CLASSES[1]),
            rf"1 classes of the val .* 2 of the train images: {CLASSES[1]};",
        ),
        (lambda f: [p.unlink() for p in (f / "val").rglob("*.JPEG")], f"got no images in .*/val{ADVICE}"),
        (lambda f: [p.rename(p.with_name(f"._{p.name}")) for p in (f / "val").rglob("*.JPEG")], "no images in .*/val"),
        (
            lambda f: shutil.copy(next((f / "val").rglob("*.JPEG")), f / "val"),
            f"images outside of any folder{ADVICE}",
        ),
    ],
)
def test_bad_folders_say_what_is_wrong(own_folder: Path, harm: Any, complaint: str) -> None:
    harm(own_folder)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        _data(own_folder)


def test_a_validation_set_may_lack_classes_and_keeps_the_numbers(own_folder: Path) -> None:
    shutil.rmtree(own_folder / "val" / CLASSES[0])
    with pytest.warns(UserWarning, match=f"1 of the 3 classes have no val images: {CLASSES[0]}"):
        data = _data(own_folder)
    assert [int(y) for batch in _batches(data, "val") for y in batch.y] == [1] * 3 + [2] * 3


SYSTEM = (".ipynb_checkpoints/a.JPEG", "__MACOSX/b/._a.JPEG", "{c}/@eaDir/a.JPEG/b.jpg", "{c}/._a.JPEG", "{c}/.a.png")


def _litter(folder: Path) -> None:
    """What notebooks, archivers and servers leave in class folders, pictures among it."""
    picture = next((folder / "val").rglob("*.JPEG"))
    for split in ("train", "val"):
        for name in SYSTEM:
            path = folder / split / name.format(c=CLASSES[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, path)
        (folder / split / ".DS_Store").touch()
        (folder / split / CLASSES[0] / "Thumbs.db").touch()
        (folder / split / ".hidden").mkdir()


def test_what_systems_leave_is_neither_class_nor_image(folder: Path, own_folder: Path, tmp_path: Path) -> None:
    _litter(own_folder)
    clean, sources = _data(folder), (own_folder, write_tars(tmp_path / "tars", own_folder))
    for source in sources:
        with pytest.warns(UserWarning, match=r"left out \._a.JPEG, \.a.png, \.ipynb_checkpoints, @eaDir"):
            data = _data(source)
        assert data.num_classes == 3
        for split in ("train", "val"):
            for a, b in zip(_batches(data, split), _batches(clean, split), strict=True):
                assert torch.equal(a.x, b.x)
                assert torch.equal(a.y, b.y)
    assert _data(own_folder).digest == clean.digest


def test_links_of_the_user_are_followed(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    (links / "val").mkdir(parents=True)
    (links / "train").symlink_to(folder / "train")
    for name in CLASSES:
        (links / "val" / name).symlink_to(folder / "val" / name)
    assert _keys(_batches(_data(links), "val")) == _keys(_batches(_data(folder), "val"))


def test_a_truncated_tar_is_refused(folder: Path, tmp_path: Path) -> None:
    tars = write_tars(tmp_path, folder)
    content = (tars / "val.tar").read_bytes()
    for length in (100, 512 * 20, len(content) - 1024 * 10):
        (tars / "val.tar").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"val.tar is not a whole tar .*; copy it again"):
            _data(tars)


def test_bad_options_say_what_to_do(folder: Path) -> None:
    for options, complaint in (
        ({"batch_size": 0}, "sizes must be at least 1, num_workers at least 0"),
        ({"repeats": 0}, "image_size and repeats must be at least 1"),
        ({"mixup": 0.8, "batch_size": 5}, "pair the images: batch_size must be even"),
        ({"crop_pct": 0.0}, "crop_pct is in 0..1, got 0.0"),
        ({"dataset": "wds/imagenet"}, "got dataset 'wds/imagenet', not hfds/"),
        ({"num_classes": 1000}, r"asked for 1000 classes, got 3 names .*; set num_classes, or complete"),
        ({"rand_augment": "foo"}, "rand_augment='foo' is not a policy of timm"),
    ):
        with pytest.raises(ValueError, match=complaint):
            _data(folder, **options)
    for world_size, complaint in (
        (3, "cannot be shared evenly by 3 processes;"),
        (4, "processes 1 images, and Mixup and"),
    ):
        with pytest.raises(ValueError, match=complaint):
            _on(_data(folder, mixup=0.8 * (world_size == 4)), 0, world_size).train_dataloader()
    with pytest.raises(ValueError, match="asked for batches of 40"):
        _data(folder, batch_size=40).train_dataloader()


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="timm's optional package datasets is not installed")
    import pyarrow
    from pyarrow import parquet

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for split, count in (("train", 8), ("validation", 5)):
        rows = {
            "image": [{"bytes": jpeg(i), "path": None} for i in range(count)],
            "label": [i % 3 for i in range(count)],
        }
        folder = tmp_path / "tiny" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        parquet.write_table(
            pyarrow.table(rows, schema=features.arrow_schema), folder / f"{split}-00000-of-00001.parquet"
        )
    data = ImageNetDataModule(
        source=str(tmp_path / "cache"),
        dataset=f"hfds/{tmp_path}/tiny",
        val_split="validation",
        image_size=16,
        batch_size=4,
        num_workers=0,
    )
    data.setup("fit")
    assert data.describe()["counts"] == {"train": 8, "val": 5, "test": 5}
    assert data.num_classes == 3
    assert [int(y) for batch in _batches(data, "val") for y in batch.y] == [0, 1, 2, 0, 1]
    assert len(set(_keys(_batches(data, "train")))) == 8
