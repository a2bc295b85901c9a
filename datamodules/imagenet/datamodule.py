"""The ImageNet data module, with timm's readers and augmentation."""

from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from datamodules.base import DataModule, not_set_up
from datamodules.batching import Batch
from datamodules.folders import few
from datamodules.imagenet import readers
from datamodules.imagenet.dataset import (
    ImageBytes,
    ImageFiles,
    ImageSampler,
    ImageStream,
    StreamLoader,
    TrainingStream,
    Transform,
)
from datamodules.imagenet.seeding import seeded
from msssm.errors import InputError
from msssm.paths import local_path

HOLDOUT_SEED = 42


class ImageNetDataModule(DataModule):
    """ImageNet-1K (Russakovsky et al. 2015), or any data set that timm's readers support.

    Batches are `Batch(x (B, 3, H, W), y, lengths, sample_index)`: x float32, normalised by ImageNet's mean and standard
    deviation; y (B,) classes or, in training with Mixup and CutMix, (B, classes) soft labels; lengths (B,) the number
    of pixels H * W. Training crops at random and flips; evaluation crops the centre. Loaders return bytes;
    `on_after_batch_transfer`, which Lightning calls, normalises, erases and mixes on the device.

    For a folder, a tar or Hugging Face's parquet, order and augmentation are a function of (shuffle_seed, epoch) for
    any number of workers; a resumed run continues with the same images, the batch of all processes together is the same
    for any number of them, and every image is evaluated exactly once. For WebDataset see `StreamLoader`,
    `TrainingStream` and `ImageStream`; timm leaves out damaged images in its shards, and logs them.

    `test` reads the validation split, which is ImageNet's labelled test set; `holdout` reserves it for that purpose.

    Args:
        root: folder of data sets; this one is read from `<root>/imagenet`.
        source: its folder, if it is elsewhere; only read. It contains train/ and val/ with a folder per class, as
            torchvision.datasets.ImageNet unpacks the official archives, or train.tar and val.tar of them; for "wds/..."
            the shards, for "hfds/..." the cache.
        dataset: timm's name, "wds/..." or "hfds/..."; "" for a folder or tar.
        train_split: timm's name of the training split.
        val_split: timm's name of the validation split.
        num_classes: expected number of classes; required for WebDataset, compared with the data otherwise.
        holdout: validate on this many of the training images (chosen with seed 42), and test on the validation split.
        image_size: H and W.
        crop_pct: side of the central crop relative to the shorter side of the image.
        rand_augment: RandAugment or another policy in timm's notation, such as "rand-m9-mstd0.5-inc1".
        random_erasing: probability per image, filled with noise.
        mixup: alpha of Mixup.
        cutmix: alpha of CutMix; with both, each batch uses one of them.
        repeats: differently augmented copies of each image in a batch.
        batch_size: training images per step, over all processes.
        eval_batch_size: images per step of validate and test; default `batch_size`.
        max_corrupt: tolerate at most this many damaged files in a split, counted by each process for itself.
        num_workers: loader processes of each training process.
        shuffle_seed: the order of training images and their augmentation are a function of it and of the epoch.
    """

    def __init__(
        self,
        root: str = "data",
        source: str | None = None,
        dataset: str = "",
        train_split: str = "train",
        val_split: str = "val",
        num_classes: int | None = None,
        holdout: int = 0,
        image_size: int = 224,
        crop_pct: float = 0.875,
        rand_augment: str | None = None,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        repeats: int = 1,
        batch_size: int = 1024,
        eval_batch_size: int | None = None,
        max_corrupt: int = 0,
        num_workers: int = 8,
        shuffle_seed: int = 0,
    ) -> None:
        """Checks the options. Raises ValueError for those that contradict each other or are out of range."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        stream = readers.is_stream(dataset)
        errors = [
            message
            for wrong, message in (
                (min(image_size, repeats) < 1, "image_size and repeats must be at least 1"),
                (min(max_corrupt, holdout) < 0, "max_corrupt and holdout at least 0"),
                (min(mixup, cutmix) < 0 or not 0 <= random_erasing <= 1, "alphas at least 0, random_erasing in 0..1"),
                (not 0 < crop_pct <= 1, f"crop_pct is in 0..1, got {crop_pct}"),
                (
                    dataset != "" and not dataset.startswith(("wds/", "hfds/")),
                    f"got dataset {dataset!r}, not wds/, hfds/",
                ),
                (stream and num_classes is None, "WebDataset does not know its number of classes: set num_classes"),
                (stream and (repeats > 1 or holdout > 0), "repeats and holdout need access by index, not WebDataset"),
            )
            if wrong
        ]
        if errors:
            raise InputError("; ".join(errors))
        self.source = local_path(root) / "imagenet" if source is None else local_path(source)
        self.dataset, self.train_split, self.val_split, self.holdout = dataset, train_split, val_split, holdout
        self.image_size, self.crop_pct, self.rand_augment = image_size, crop_pct, rand_augment
        self.random_erasing, self.mixup, self.cutmix, self.repeats = random_erasing, mixup, cutmix, repeats
        self.max_corrupt, self.num_classes = max_corrupt, num_classes
        self._files: dict[str, ImageFiles] = {}
        if self._mixes and batch_size % 2:
            raise InputError(f"Mixup and CutMix pair the images of a batch: batch_size must be even, got {batch_size}")

    def setup(self, stage: str) -> None:
        """Lists the images and compares the classes; decodes nothing."""
        if self._files or readers.is_stream(self.dataset):
            return
        train = readers.open_map(self.dataset, self.source, self.train_split)
        val = readers.open_map(self.dataset, self.source, self.val_split)
        names, own = readers.class_names(train), readers.class_names(val)
        if unknown := sorted(set(own) - set(names)):
            raise InputError(
                f"{len(unknown)} classes of the {self.val_split} images are not among the {len(names)} of the "
                f"{self.train_split} images: {few(unknown)}; both need the same class folders"
            )
        if own and (absent := sorted(set(names) - set(own))):
            rank_zero_warn(
                f"{len(absent)} of the {len(names)} classes have no {self.val_split} images, and are not evaluated: "
                f"{few(absent)}"
            )
        found = len(names) or self.num_classes
        if found is None or (self.num_classes is not None and self.num_classes != found):
            raise InputError(
                f"asked for {self.num_classes or 'a number of'} classes, got {len(names) or 'no'} names of classes in "
                f"{self.dataset or self.source} {f'({few(names)})' * bool(names)}; set num_classes, or complete the "
                "class folders"
            )
        if not self.holdout < len(train):
            raise InputError(
                f"asked to hold out {self.holdout} of {len(train)} training images; leave some to train on"
            )
        self.num_classes = found
        number = {name: index for index, name in enumerate(names)}
        classes = np.array([number[name] for name in own], dtype=np.int64) if own else None
        order = np.random.default_rng(HOLDOUT_SEED).permutation(len(train))
        held, kept = np.sort(order[: self.holdout]), np.sort(order[self.holdout :])
        evaluation = self._transform(training=False)
        test = ImageFiles(val, evaluation, classes=classes)
        self._files = {
            "train": ImageFiles(train, self._transform(training=True), rows=kept),
            "val": ImageFiles(train, evaluation, rows=held) if self.holdout else test,
            "test": test,
        }

    def split(self, name: str) -> ImageFiles:
        """The images of a split."""
        if name not in self._files:
            raise not_set_up(f"the {name} images")
        return self._files[name]

    def training_sampler(self, batch_size: int, rank: int, world_size: int) -> ImageSampler:
        """Training batches of one process, with a seed for the augmentation of each image."""
        return ImageSampler(
            len(self.split("train")),
            batch_size,
            repeats=self.repeats,
            seed=self.shuffle_seed,
            rank=rank,
            world_size=world_size,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """This process's training batches."""
        if not readers.is_stream(self.dataset):
            return super().train_dataloader()
        reader = self._open_stream(self.train_split, self.share_of_batch, training=True)
        stream = TrainingStream(reader, self._transform(training=True), self.shuffle_seed, self.shard[0])
        return self._stream_loader(stream, self.share_of_batch)

    def evaluation_loader(self, split: str, *, sort: bool = True) -> DataLoader[Batch]:
        """Loads every image of a split once over all processes; a stream is read in its own order."""
        if not readers.is_stream(self.dataset):
            return super().evaluation_loader(split, sort=sort)
        reader = self._open_stream(self.val_split, self.eval_batch_size, training=False)
        stream = ImageStream(reader, self._transform(training=False), *self.shard)
        return self._stream_loader(stream, self.eval_batch_size)

    def counts(self) -> dict[str, int]:
        """Images of each split; nothing for a stream."""
        return {name: len(data) for name, data in self._files.items()}  # none of a stream

    @property
    def share_of_batch(self) -> int:
        """Training images per step of each process.

        Raises:
            ValueError: the batch cannot be divided evenly, or into pairs for Mixup and CutMix.
        """
        share = super().share_of_batch
        if self._mixes and share % 2:
            raise InputError(
                f"batch_size={self.batch_size} gives each of {self.shard[1]} processes {share} images, and Mixup and "
                "CutMix pair them; choose another --trainer.devices or --data.batch_size"
            )
        return share

    def on_after_batch_transfer(self, batch: ImageBytes, dataloader_idx: int) -> Batch:
        """Converts bytes to normalised floats; in training, also erases and mixes.

        Raises:
            ValueError: more files are damaged than `max_corrupt` allows.
        """
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        from timm.data.mixup import Mixup
        from timm.data.random_erasing import RandomErasing

        self._check_damage()
        x, y, device = batch.x.float(), batch.y, batch.x.device
        mean, std = (
            torch.tensor(c, device=device).view(3, 1, 1) for c in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        x = x.sub_(255 * mean).div_(255 * std)
        if batch.seed and (self._mixes or self.random_erasing):
            with seeded(batch.seed, device):
                if self.random_erasing:
                    x = RandomErasing(self.random_erasing, mode="pixel", device=str(device))(x)
                if self._mixes:
                    x, y = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=self.num_classes)(x, y)
        lengths = torch.full((len(x),), self.image_size**2, dtype=torch.int64, device=device)
        return Batch(x, y, lengths, batch.sample_index)

    @cached_property
    def digest(self) -> str:
        """sha256 of classes, file names and sizes; contents are not read."""
        listings = {readers.listing_digest(reader) for reader in self._readers.values()}
        return sha256("".join(sorted(listings)).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts, classes, digest, preprocessing, and the damaged files that this process has read."""
        return {
            **super().describe(),
            "classes": self.num_classes,
            "image_size": self.image_size,
            "crop_pct": self.crop_pct,
            "damaged": {name: data.damaged() for name, data in self._files.items()},
        }

    @property
    def _mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def _readers(self) -> dict[str, Any]:
        if readers.is_stream(self.dataset):
            return {split: self._open_stream(split, 1, training=False) for split in (self.train_split, self.val_split)}
        return {name: self.split(name).reader for name in ("train", "test")}

    def _transform(self, *, training: bool) -> Transform:
        from timm.data.transforms_factory import create_transform

        try:
            transform: Transform = create_transform(
                self.image_size,
                is_training=training,
                use_prefetcher=True,  # bytes out
                color_jitter=None,  # type: ignore[arg-type]  # none at all
                auto_augment=self.rand_augment if training else None,
                interpolation="bicubic",
                crop_pct=self.crop_pct,
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(f"rand_augment={self.rand_augment!r} is not a policy of timm: {error}") from error
        return transform

    def _open_stream(self, split: str, batch_size: int, *, training: bool) -> Any:
        return readers.open_stream(
            self.dataset, self.source, split, batch_size=batch_size, training=training, seed=self.shuffle_seed
        )

    def _stream_loader(self, stream: ImageStream | TrainingStream, batch_size: int) -> DataLoader[Batch]:
        trainer = self.trainer
        return StreamLoader(
            stream,
            batch_size,
            num_workers=self.num_workers,
            seed=self.shuffle_seed,
            epoch=lambda: trainer.current_epoch if trainer is not None else 0,
        )

    def _check_damage(self) -> None:
        for split, data in self._files.items():
            if (count := data.count_damaged) > self.max_corrupt:
                raise InputError(
                    f"{count} damaged files among the {split} images met so far: {data.first_damage()}. Replace "
                    f"them, or use what can be read of them: --data.max_corrupt {count}"
                )
