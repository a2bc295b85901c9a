"""WebDataset shards and Hugging Face's parquet, where timm's optional packages are installed."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules import ImageNetDataModule
from tests.support.images import jpeg, write_shards
from tests.support.recorder import Recorder, quiet_trainer

TRAIN, VAL = [9, 6, 7, 8], [3, 4, 2]


def _on(data: ImageNetDataModule, rank: int, world_size: int, epoch: int = 0) -> ImageNetDataModule:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=epoch)  # type: ignore[assignment]
    return data


def _keys(data: ImageNetDataModule, split: str) -> list[bytes]:
    batches = (data.on_after_batch_transfer(batch, 0) for batch in getattr(data, f"{split}_dataloader")())
    return [x.numpy().tobytes() + bytes([int(y)]) for batch in batches for x, y in zip(batch.x, batch.y, strict=True)]


def _shards(root: Path, **options: Any) -> ImageNetDataModule:
    pytest.importorskip("webdataset", reason="timm's optional package webdataset is not installed")
    train, val = write_shards(root, "train", TRAIN), write_shards(root, "val", VAL, first=100)
    arguments: dict[str, Any] = {"image_size": 16, "batch_size": 4, "num_workers": 2, "num_classes": 3, **options}
    data = ImageNetDataModule(source=str(root), dataset="wds/tiny", train_split=train, val_split=val, **arguments)
    data.setup("fit")
    return data


def _pretend(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    """Tells timm's reader that it runs in one of several processes."""
    told = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_rank=lambda: rank,
        get_world_size=lambda: world_size,
    )
    monkeypatch.setattr("timm.data.readers.reader_wds.dist", told)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_streamed_image_is_evaluated_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, workers: int
) -> None:
    whole = Counter(_keys(_shards(tmp_path, num_workers=1), "val"))
    assert whole.total() == len(whole) == sum(VAL)
    found: Counter[bytes] = Counter()
    samples: list[int] = []
    for rank in range(processes):
        _pretend(monkeypatch, rank, processes)
        data = _on(_shards(tmp_path, num_workers=workers), rank, processes)
        found.update(_keys(data, "val"))
        samples += [int(s) for batch in data.val_dataloader() for s in batch.sample_index]
    assert found == whole
    assert len(set(samples)) == len(samples) == sum(VAL)


def test_processes_train_on_equally_many_batches_of_different_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    central = _shards(tmp_path)._transform(training=False)  # of an image always the same
    monkeypatch.setattr(ImageNetDataModule, "_transform", lambda *_, **__: central)
    shares = []
    for rank in range(2):
        _pretend(monkeypatch, rank, 2)
        loader = _on(_shards(tmp_path, batch_size=8), rank, 2).train_dataloader()
        shares.append(list(loader))
        assert len(loader) == len(shares[-1]) == 4, "30 images over 2 x 2 workers, rounded up to batches of 4"
    first, second = ({x.numpy().tobytes() for batch in share for x in batch.x} for share in shares)
    assert not first & second
    assert len(first | second) >= 27, "of 30: the shard of 6 comes again, of the one of 9 an image is left"


def test_a_streamed_epoch_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    def epoch(number: int, seed: int = 0) -> list[bytes]:
        options: dict[str, Any] = {"shuffle_seed": seed, "random_erasing": 0.5}
        return _keys(_on(_shards(tmp_path, **options), 0, 1, number), "train")

    first = epoch(0)
    torch.manual_seed(5)
    assert epoch(0) == first
    assert len(first) == 32, "30 images, rounded up to whole batches of each worker"
    assert not set(first) & set(epoch(1))
    assert not set(first) & set(epoch(0, seed=1))
    data = _on(_shards(tmp_path, random_erasing=0.5), 0, 1)
    loader = data.train_dataloader()
    for number in (0, 1):  # one loader, epoch after epoch, meets what a run that is continued meets
        data.trainer.current_epoch = number  # type: ignore[misc,union-attr]
        batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        x = [x.numpy().tobytes() + bytes([int(y)]) for b in batches for x, y in zip(b.x, b.y, strict=True)]
        assert x == epoch(number)


def test_lightning_stops_neither_early_nor_late(tmp_path: Path) -> None:
    """Workers end in small batches: 5 and 4 images make 3 + 2 batches of 2, more than 9 / 2 would tell."""
    task, sizes = Recorder(lambda batch: len(batch.y)), list[int]()
    task.validation_step = lambda batch: sizes.append(len(batch.y))  # type: ignore[method-assign]
    trainer = quiet_trainer(max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=False)
    trainer.fit(task, datamodule=_shards(tmp_path, eval_batch_size=2))
    assert task.seen == [4] * 8
    assert trainer.num_training_batches == 8
    assert sorted(sizes) == [1, 2, 2, 2, 2]


def test_bad_shards_say_what_is_wrong(tmp_path: Path) -> None:
    data = _shards(tmp_path)
    assert len(data.digest) == 64
    shard = tmp_path / "val-1.tar"
    shard.write_bytes(shard.read_bytes()[:2048])
    with pytest.raises(ValueError, match=r"val-1.tar is not a whole tar .*copy it again"):
        data.val_dataloader()
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the shard .*val-1.tar, got no such file"):
        data.val_dataloader()
    data.val_split = "validation"
    with pytest.raises(ValueError, match=r"cannot read 'validation' of wds/tiny in .*: split validation not found"):
        data.val_dataloader()


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
    assert [key[-1] for key in _keys(data, "val")] == [0, 1, 2, 0, 1]
    assert len(set(_keys(data, "train"))) == 8
