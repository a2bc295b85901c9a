"""Sequential CIFAR-10 and the digits: pixels against PIL and scikit-learn, splits, shares, exact resumption."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datamodules import Batch, DigitsDataModule, SequentialCIFARDataModule
from datamodules.images.pixels import PixelDataModule
from tests.support.cifar10 import ROWS, accept_tiny, images, write_folder
from tests.support.recorder import steps_after_each_checkpoint
from tests.support.tolerances import FLOAT32, METRIC, STEP, assert_near


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accept_tiny(monkeypatch)
    write_folder(tmp_path / "cifar10" / "cifar-10-batches-py")
    return tmp_path


def _cifar(root: Path, **options: Any) -> SequentialCIFARDataModule:
    data = SequentialCIFARDataModule(root=str(root), **{"batch_size": 10, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def _batches(data: PixelDataModule, split: str, *, epoch: int = 0) -> list[Batch]:
    loader = getattr(data, f"{split}_dataloader")()
    loader.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def _samples(batch: Batch) -> torch.Tensor:
    assert batch.sample_index is not None
    return batch.sample_index


def _on(data: PixelDataModule, rank: int, world_size: int) -> PixelDataModule:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return data


def test_pixels_are_normalised_in_raster_order(root: Path) -> None:
    pixels, labels = images()
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    expected = (pixels[-ROWS:].transpose(0, 2, 3, 1).reshape(ROWS, 1024, 3) / 255 - mean) / std
    data = _cifar(root)
    assert next(iter(data.test_dataloader())).x.dtype == torch.uint8
    batches = _batches(data, "test")
    x = torch.cat([batch.x for batch in batches])
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x, expected, rtol=0, atol=STEP[torch.float32])
    assert torch.cat([batch.y for batch in batches]).tolist() == labels[-ROWS:].tolist()
    assert torch.cat([batch.lengths for batch in batches]).tolist() == [1024] * ROWS
    assert torch.cat([_samples(batch) for batch in batches]).tolist() == list(range(ROWS))


def test_greyscale_is_pils(root: Path) -> None:
    pixels, _ = images()
    pil = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in pixels[-ROWS:]])
    x = torch.cat([batch.x for batch in _batches(_cifar(root, greyscale=True), "test")])
    assert x.shape == (ROWS, 1024, 1)
    grey = x[..., 0] * 61.0 + 122.6
    assert np.abs(grey.numpy() - pil.reshape(ROWS, -1)).max() < 0.501, "PIL rounds to bytes"


def test_a_permutation_is_one_for_all_images_and_fixed(root: Path) -> None:
    plain, permuted = _cifar(root), _cifar(root, permutation_seed=1)
    before = torch.cat([batch.x for batch in _batches(plain, "test")])
    after = torch.cat([batch.x for batch in _batches(permuted, "test")])
    columns = {tuple(column.flatten().tolist()): i for i, column in enumerate(before.unbind(1))}
    order = [columns[tuple(column.flatten().tolist())] for column in after.unbind(1)]
    assert sorted(order) == list(range(1024))
    assert order != sorted(order)
    again = torch.cat([batch.x for batch in _batches(_cifar(root, permutation_seed=1), "test")])
    other = torch.cat([batch.x for batch in _batches(_cifar(root, permutation_seed=2), "test")])
    assert torch.equal(after, again)
    assert not torch.equal(after, other)


def test_the_split_is_that_of_torchs_random_split_with_seed_42(root: Path) -> None:
    """As S4's repository and those that follow it make it."""
    data = _cifar(root)
    generator = torch.Generator().manual_seed(42)
    train, val = torch.utils.data.random_split(range(100), [90, 10], generator=generator)  # type: ignore[arg-type]
    assert data.split("train").rows.tolist() == list(train)
    assert data.split("val").rows.tolist() == list(val)
    assert data.split("test").rows.tolist() == list(range(100, 120))


def test_provenance(root: Path) -> None:
    data = _cifar(root, greyscale=True, permutation_seed=3)
    about = data.describe()
    assert about.pop("digest") == _cifar(root).digest
    assert about == {
        "counts": {"train": 90, "val": 10, "test": 20},
        "length": 1024,
        "classes": 10,
        "form": "batch files",
        "greyscale": True,
        "permutation_seed": 3,
    }


def test_digits_are_scikit_learns(root: Path) -> None:
    data = DigitsDataModule()
    data.setup("fit")
    pixels, labels = load_digits(return_X_y=True)
    found: Counter[tuple[bytes, int]] = Counter()
    for split in ("train", "val", "test"):
        for batch in _batches(data, split):
            assert batch.x.shape[1:] == (64, 1)
            back = torch.round((batch.x * data.std + data.mean) * 16)
            assert_near(batch.x * data.std + data.mean, back / 16, METRIC)
            found.update((x.numpy().astype(np.uint8).tobytes(), int(y)) for x, y in zip(back, batch.y, strict=True))
    assert found == Counter((x.astype(np.uint8).tobytes(), int(y)) for x, y in zip(pixels, labels, strict=True))
    train = torch.cat([batch.x for batch in _batches(data, "train")])
    assert train.mean().item() == pytest.approx(0, abs=FLOAT32)
    assert train.std(unbiased=False).item() == pytest.approx(1, abs=FLOAT32)


def test_the_digits_split_is_stratified_and_fixed() -> None:
    data = DigitsDataModule()
    data.setup("fit")
    counts = {name: len(part) for name, part in data._splits.items()}
    assert counts == {"train": 1197, "val": 200, "test": 400}
    everything = np.bincount(data.split("train").labels)
    for name, part in data._splits.items():
        own = np.bincount(part.labels[part.rows], minlength=10)
        assert np.abs(own - everything * counts[name] / 1797).max() < 2
    assert data.digest == DIGITS


DIGITS = "02e57c8dde210979c29129c42f47b43d3b9880439e5cf1570af69294ca072736"


def test_every_checkpoint_continues_exactly(tmp_path: Path) -> None:
    def note(batch: Batch) -> float:
        assert batch.x.dtype == torch.float32
        return batch.x[:, 20:40].double().sum().item()

    whole, resumed = steps_after_each_checkpoint(tmp_path, lambda: DigitsDataModule(batch_size=300), note)
    assert len(set(whole)) == 8
    assert resumed == {done: whole[done:] for done in range(1, 8)}


def test_bad_options_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="batch_size=0, eval_batch_size=0, num_workers=0; sizes must be at least 1"):
        DigitsDataModule(batch_size=0)
    data = DigitsDataModule(batch_size=50)
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        data.train_dataloader()
    data.setup("fit")
    with pytest.raises(ValueError, match=r"cannot be shared evenly by 4 processes; choose another --trainer.devices"):
        _on(data, 0, 4).train_dataloader()
