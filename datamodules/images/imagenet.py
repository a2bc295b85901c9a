"""The ImageNet data module, with timm's readers and augmentation."""

from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import DataModule, not_set_up
from datamodules.batching import Batch
from datamodules.disk import few
from datamodules.images import readers
from datamodules.images.batches import ImageBytes, ImageFiles, ImageSampler, Transform
from msssm.errors import InputError
from msssm.paths import local_path

HOLDOUT_SEED = 42


class ImageNetDataModule(DataModule):
    """ImageNet-1K (Russakovsky et al. 2015), or any data set that timm's readers support.

    Batches are `Batch(x (B, 3, H, W), y, lengths, sample_index)`: x float32, normalised by ImageNet's mean and standard
    deviation; y (B,) classes or, in training with Mixup and CutMix, (B, classes) soft labels; lengths (B,) the number
    of pixels H * W. Training crops at random and flips; evaluation crops the centre. Loaders return bytes;
    `on_after_batch_transfer`, which Lightning calls, normalises, erases and mixes on the device.

    Order and augmentation are a function of (shuffle_seed, epoch) for any number of workers; a resumed run continues
    with the same images, the batch of all processes together is the same for any number of them, and every image is
    evaluated exactly once.

    `test` reads the validation split, which is ImageNet's labelled test set; `holdout` reserves it for that purpose.

    Args:
        root: folder of data sets; this one is read from `<root>/imagenet`.
        source: its folder, if it is elsewhere; only read. It contains train/ and val/ with a folder per class, as
            torchvision.datasets.ImageNet unpacks the official archives, or train.tar and val.tar of them; for
            "hfds/..." the cache.
        dataset: timm's name of Hugging Face's parquet, "hfds/..."; "" for a folder or tar.
        train_split: timm's name of the training split.
        val_split: timm's name of the validation split.
        num_classes: expected number of classes, compared with the data.
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
        checks = (
            (min(image_size, repeats) >= 1, "image_size and repeats must be at least 1"),
            (min(max_corrupt, holdout) >= 0, "max_corrupt and holdout at least 0"),
            (min(mixup, cutmix) >= 0 and 0 <= random_erasing <= 1, "alphas at least 0, random_erasing in 0..1"),
            (0 < crop_pct <= 1, f"crop_pct is in 0..1, got {crop_pct}"),
            (dataset == "" or dataset.startswith("hfds/"), f"got dataset {dataset!r}, not hfds/"),
            (not (mixup or cutmix) or batch_size % 2 == 0, "Mixup and CutMix pair the images: batch_size must be even"),
        )
        if errors := [message for right, message in checks if not right]:
            raise InputError("; ".join(errors))
        self.source = local_path(root) / "imagenet" if source is None else local_path(source)
        self.dataset, self.train_split, self.val_split, self.holdout = dataset, train_split, val_split, holdout
        self.image_size, self.crop_pct, self.rand_augment = image_size, crop_pct, rand_augment
        self.random_erasing, self.mixup, self.cutmix, self.repeats = random_erasing, mixup, cutmix, repeats
        self.max_corrupt, self.num_classes = max_corrupt, num_classes
        self._files: dict[str, ImageFiles] = {}
        self._splits: tuple[readers.Split, ...] = ()

    def setup(self, stage: str) -> None:
        """Lists the images and compares the classes; decodes nothing."""
        if self._files:
            return
        train = readers.open_split(self.dataset, self.source, self.train_split)
        val = readers.open_split(self.dataset, self.source, self.val_split)
        self.num_classes = self._compare_classes(train.classes, val.classes)
        if not self.holdout < len(train.rows):
            raise InputError(
                f"asked to hold out {self.holdout} of {len(train.rows)} training images; leave some to train on"
            )
        numbers = {name: number for number, name in enumerate(train.classes)}
        order = np.random.default_rng(HOLDOUT_SEED).permutation(len(train.rows))
        held, kept = (train.rows[np.sort(part)] for part in np.split(order, [self.holdout]))
        training, evaluation = self._transform(training=True), self._transform(training=False)
        test = ImageFiles(val.reader, val.rows, evaluation, numbers)
        self._files = {
            "train": ImageFiles(train.reader, kept, training, numbers),
            "val": ImageFiles(train.reader, held, evaluation, numbers) if self.holdout else test,
            "test": test,
        }
        self._splits = (train, val)

    def _compare_classes(self, names: list[str], own: list[str]) -> int:
        """Compares the classes of training and validation images; returns their number."""
        if unknown := sorted(set(own) - set(names)):
            raise InputError(
                f"{len(unknown)} classes of the {self.val_split} images are not among the {len(names)} of the "
                f"{self.train_split} images: {few(unknown)}; both need the same class folders"
            )
        if own and (absent := sorted(set(names) - set(own))):
            rank_zero_warn(f"{len(absent)} of the {len(names)} classes have no {self.val_split} images: {few(absent)}")
        found = len(names) or self.num_classes
        if found is None or (self.num_classes is not None and self.num_classes != found):
            raise InputError(
                f"asked for {self.num_classes or 'a number of'} classes, got {len(names) or 'no'} names of classes in "
                f"{self.dataset or self.source} {f'({few(names)})' * bool(names)}; set num_classes, or complete the "
                "class folders"
            )
        return found

    def split(self, name: str) -> ImageFiles:
        """The images of a split."""
        if name not in self._files:
            raise not_set_up(f"the {name} images")
        return self._files[name]

    def training_sampler(self, batch_size: int, rank: int, world_size: int) -> ImageSampler:
        """Training batches of one process, with a seed for the augmentation of each image."""
        options = {"seed": self.shuffle_seed, "rank": rank, "world_size": world_size}
        return ImageSampler(len(self.split("train")), batch_size, repeats=self.repeats, **options)

    @property
    def share_of_batch(self) -> int:
        """Training images per step of each process. Raises ValueError where Mixup and CutMix find no pairs in them."""
        share = super().share_of_batch
        if self._mixes and share % 2:
            raise InputError(
                f"batch_size={self.batch_size} gives each of {self.shard[1]} processes {share} images, and Mixup and "
                "CutMix pair them; choose another --trainer.devices or --data.batch_size"
            )
        return share

    def on_after_batch_transfer(self, batch: ImageBytes, dataloader_idx: int) -> Batch:
        """Converts bytes to normalised floats; in training, also erases and mixes. Refuses too many damaged files."""
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        from timm.data.mixup import Mixup
        from timm.data.random_erasing import RandomErasing

        self._check_damage()
        x, y, device = batch.x.float(), batch.y, batch.x.device
        mean, std = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD], device=device).view(2, 3, 1, 1)
        x = x.sub_(255 * mean).div_(255 * std)
        if batch.seed and (self._mixes or self.random_erasing):
            with readers.seeded(batch.seed, device):
                if self.random_erasing:
                    x = RandomErasing(self.random_erasing, mode="pixel", device=str(device))(x)
                if self._mixes:
                    x, y = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=self.num_classes)(x, y)
        lengths = torch.full((len(x),), self.image_size**2, dtype=torch.int64, device=device)
        return Batch(x, y, lengths, batch.sample_index)

    @cached_property
    def digest(self) -> str:
        """sha256 of classes, file names and sizes; contents are not read."""
        self.split("train")
        listings = {readers.listing_digest(split) for split in self._splits}
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

    def _check_damage(self) -> None:
        for split, data in self._files.items():
            if len(names := data.damaged()) > self.max_corrupt:
                raise InputError(
                    f"{len(names)} damaged files among the {split} images met so far: {few(names)}. Replace them, or "
                    f"have ImageNet's mean colour in their place: --data.max_corrupt {len(names)}"
                )
