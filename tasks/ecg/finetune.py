"""A trained ECG model learns the labels of someone's own recordings: a new head on its encoder and backbone."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from datamodules.arrays.augmentation import Augmentation
from datamodules.arrays.datamodule import ArrayDataset, EpochSampler
from datamodules.arrays.files import Sequences
from datamodules.base import SPLITS, DataModule
from datamodules.batching import Batch
from datamodules.ptbxl.recording import find_recordings
from msssm import SequenceClassifier, param_groups
from msssm.errors import InputError
from tasks.base import SequenceTask
from tasks.ecg.recordings.inference import Windows, offline, standardised
from tasks.ecg.recordings.model import Answers, ECGModel
from tasks.ecg.recordings.options import RecordingOptions
from tasks.messages import quiet
from tasks.run.checkpoint_io import read_checkpoint
from tasks.run.dashboard import EpochLines
from tasks.run.run import Run

OWN = ("file", "patient", "split")  # columns that are no labels
LOWER = 0.2  # rate of what was trained before, as a share of the head's
PATIENCE, LEAST = 8, 0.005  # epochs without a validation loss that is better by so much
_FOLDS = 6  # of which one is the test part, and one the validation part

Ints = npt.NDArray[np.int64]


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table of labels: a column `file`, labels of 0 and 1, and `patient` and `split` where they are known.

    Raises:
        InputError: naming the column and the line of what is missing or wrong.
    """
    try:
        table = pd.read_csv(path, dtype={"file": str, "patient": str, "split": str}, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise InputError(f"the table of labels {path} cannot be read ({error}); write a CSV with a header") from error
    labels = [name for name in table.columns if name not in OWN]
    if "file" not in table or not labels or table.empty:
        raise InputError(
            f"expected a column file, a label or more, and a line for each recording in {path}, got the columns "
            f"{', '.join(map(str, table.columns))} and {len(table)} lines"
        )
    for name in labels:
        wrong = np.flatnonzero(~table[name].isin([0, 1]))
        if len(wrong):
            raise InputError(
                f"{path}, line {wrong[0] + 2}: expected 0 or 1 in the column {name}, got {table[name][wrong[0]]!r}; "
                "every column but file, patient and split is a label"
            )
    for name in OWN:
        if name in table and (empty := np.flatnonzero(table[name].isna())).size:
            raise InputError(f"{path}, line {empty[0] + 2}: the column {name} is empty; fill it in, or drop the line")
    if repeated := table.file[table.file.duplicated()].tolist():
        raise InputError(f"{path} names {repeated[0]} more than once; give each recording one line")
    if "split" in table and not set(table["split"]) <= set(SPLITS):
        unknown = (set(map(str, table["split"])) - set(SPLITS)).pop()
        raise InputError(f"{path} has the split {unknown!r}; the column split says train, val or test")
    return table


def read_signals(table: pd.DataFrame, folder: Path, answers: Answers, options: RecordingOptions) -> list[Tensor]:
    """Reads the recordings of a table as a model takes them, (L, 12) each.

    Raises:
        InputError: with the reason for each that cannot be used.
    """
    signals, faults = [], []
    for name in table.file:
        try:
            recording = options.read(find_recordings(folder / name)[0], answers.sampling_rate)
            answers.windows.starts(len(recording.signal))
            signals.append(standardised(recording, answers.mean, answers.std))
        except InputError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise InputError(
            "\n".join([*faults, f"{len(faults)} of {len(table)} recordings cannot be used; nothing was trained"])
        )
    return signals


def split_rows(table: pd.DataFrame, seed: int) -> dict[str, Ints]:
    """Rows of train, val and test: of the column `split`, or about 4 : 1 : 1 at random, no patient in two of them.

    Raises:
        InputError: a patient is in two parts, or a label has no positive or no negative in one.
    """
    labels = [name for name in table.columns if name not in OWN]
    patients = table["patient"] if "patient" in table else pd.Series(table.index.astype(str))
    if "split" in table:
        rows = {name: np.flatnonzero(table["split"] == name) for name in SPLITS}
        parts = table["split"].groupby(patients.to_numpy()).nunique()
        if (parts > 1).any():
            raise InputError(f"the patient {parts.idxmax()} is in {parts.max()} splits; give all of one the same split")
    else:
        if patients.nunique() < _FOLDS:
            raise InputError(f"expected {_FOLDS} patients or more to split, got {patients.nunique()}; give more")
        folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
        kinds = table[labels].astype(int).astype(str).agg("".join, axis=1)
        test, val = (rows for _, (_, rows) in zip(range(2), folds.split(kinds, kinds, patients), strict=False))
        rest = np.setdiff1d(np.arange(len(table)), [*test, *val])
        rows = {"train": rest, "val": val, "test": test}
    for name, chosen in rows.items():
        for label in labels:
            positives = int(table[label].to_numpy()[chosen].sum())
            if not 0 < positives < len(chosen):
                raise InputError(
                    f"the {name} part has {len(chosen)} recordings, {positives} of them with {label}; it needs both, "
                    "with and without: give more recordings, another --seed, or a column split"
                )
    return rows


class LabelledRecordings(DataModule):
    """Recordings in memory: in training a random crop of each, a function of (seed, epoch, recording).

    Args:
        signals: (L, 12) each.
        labels: (N, K) of 0 and 1.
        rows: Recordings of train, val and test.
        window: Samples of a crop.
        seed: Seed of order and crops.
    """

    def __init__(
        self, signals: Sequence[Tensor], labels: npt.NDArray[np.float32], rows: dict[str, Ints], window: int, seed: int
    ) -> None:
        """Keeps the arrays."""
        super().__init__(min(32, len(rows["train"])), 16, 0, seed)
        self.signals, self.labels, self.rows, self.window = [x.numpy() for x in signals], labels, rows, window

    def split(self, name: str) -> ArrayDataset:
        """The recordings of a split."""
        rows, lengths = self.rows[name], self.lengths(name)
        return ArrayDataset(
            Sequences(self.signals), rows, self.labels[rows], lengths, Augmentation(), self.shuffle_seed
        )

    def lengths(self, split: str) -> Ints:
        """Samples of each recording of a split, of which training has a window."""
        whole = np.array([len(self.signals[row]) for row in self.rows[split]])
        return np.minimum(whole, self.window) if split == "train" else whole

    def training_sampler(self, batch_size: int, rank: int, world_size: int) -> EpochSampler:
        """Training batches of one process."""
        lengths = self.lengths("train")
        return EpochSampler(lengths, batch_size, seed=self.shuffle_seed, rank=rank, world_size=world_size)

    @property
    def digest(self) -> str:
        """sha256 of signals, labels and rows."""
        found = sha256(self.labels.tobytes())
        for part in (*self.signals, *self.rows.values()):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()


class FineTuning(SequenceTask):
    """Binary cross-entropy of a new head, of random crops; validation by the model's own windows.

    Args:
        model: Network with its new head.
        windows: Windows that it reads.
        lr: Peak learning rate of the head.
        freeze: Train the head alone.
        lower: Rate of encoder and backbone, as a share of the head's.
    """

    def __init__(
        self, model: SequenceClassifier, windows: Windows, lr: float, freeze: bool, lower: float = LOWER
    ) -> None:
        """Takes the network."""
        super().__init__(lr, weight_decay=0.03, ssm_lr=None, warmup_epochs=1)
        self.model, self.windows, self.frozen = model, windows, freeze
        self.lower = lower
        for part in (model.encoder, model.backbone):
            part.requires_grad_(not freeze)

    def train(self, mode: bool = True) -> "FineTuning":
        """Leaves what is frozen as it is, dropout and running statistics included."""
        super().train(mode)
        if self.frozen:
            self.model.encoder.eval()
            self.model.backbone.eval()
        return self

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps x (B, L, 12) to logits (B, K)."""
        return self.model(x, lengths)

    def validation_metrics(self) -> dict[str, str]:
        """The loss of the validation."""
        return {"val/loss": "min"}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, and logs it."""
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch.x, batch.lengths), batch.y)
        self.check_loss(loss, batch.x, batch.lengths)
        self.log_train_loss(loss, len(batch.y))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss of whole recordings."""
        rows = [offline(self.model, x[:n], self.windows) for x, n in zip(batch.x, batch.lengths, strict=True)]
        loss = nn.functional.binary_cross_entropy_with_logits(torch.stack(rows), batch.y)
        self.check_loss(loss, batch.x, batch.lengths, stage="val")
        self.log("val/loss", loss, batch_size=len(batch.y), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a lower rate for what was trained before."""
        groups = param_groups(self.model.head, self.lr, self.weight_decay)
        if not self.frozen:
            groups += param_groups(self.model.encoder, self.lower * self.lr, self.weight_decay)
            groups += param_groups(self.model.backbone, self.lower * self.lr, self.weight_decay)
        optimizer = torch.optim.AdamW([{**group, "name": str(i)} for i, group in enumerate(groups)])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def finetune(
    base: ECGModel,
    data: LabelledRecordings,
    folder: Path,
    *,
    epochs: int,
    lr: float,
    freeze: bool,
    seed: int,
    lower: float = LOWER,
) -> tuple[SequenceClassifier, dict[str, Any]]:
    """Trains, or resumes; returns the network of the best validation in `eval()`, and the run's metrics.

    Args:
        base: Model to start from; its network is used up.
        data: Recordings.
        folder: Folder of the run.
        epochs: Most epochs; training ends when `PATIENCE` of them bring nothing.
        lr: Peak learning rate of the head.
        freeze: Train the head alone.
        seed: Seed of the head, of dropout and of order and crops.
        lower: Rate of encoder and backbone, as a share of the head's.
    """
    lightning.seed_everything(seed, verbose=False)
    network = base.network
    network.head = nn.Linear(network.backbone.d_model, data.labels.shape[1])
    task = FineTuning(network, base.answers.windows, lr, freeze, lower).train()
    run = Run(folder, monitor="val/loss", mode="min")
    stop = EarlyStopping("val/loss", min_delta=LEAST, patience=PATIENCE)
    with quiet():
        trainer = run.trainer(
            [stop, EpochLines()], max_epochs=epochs, gradient_clip_val=1.0, enable_model_summary=False
        )
        metrics = run.fit(trainer, task, data, seed, test=False)
    task.load_state_dict(read_checkpoint(Path(run.best.best_path))["state_dict"])
    return task.cpu().model.eval(), metrics
