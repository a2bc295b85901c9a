"""Selective copying and marked counting: labels by a plain loop, positions without preference, streams, resumption."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import Batch, SelectiveCopyingDataModule
from datamodules.synthetic import GENERATORS, Kind
from tasks.cli.main import main
from tests.support.tolerances import allowed

SIZES: dict[str, Any] = {"train_size": 600, "val_size": 200, "test_size": 200}
KINDS: list[Kind] = ["copying", "counting"]


def _data(kind: Kind, **options: Any) -> SelectiveCopyingDataModule:
    data = SelectiveCopyingDataModule(kind, **{"length": 24, "items": 5, "symbols": 4, **SIZES, **options})
    data.setup("fit")
    return data


def _samples(data: SelectiveCopyingDataModule, split: str) -> list[tuple[list[int], int]]:
    """(tokens, label) of a split, in its order, as a task gets them."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in getattr(data, f"{split}_dataloader")()]
    assert all((batch.x.dtype, batch.y.dtype) == (torch.int64, torch.int64) for batch in batches)
    return [(x.tolist(), int(y)) for batch in batches for x, y in zip(batch.x, batch.y, strict=True)]


def _copied(tokens: list[int], symbols: int) -> int:
    """The symbol asked for, read as a person would."""
    remembered = [token for token in tokens[:-1] if token != 0]
    return remembered[tokens[-1] - symbols - 1] - 1


def _most_marked(tokens: list[int]) -> list[int]:
    """The symbols that stand most often behind a mark."""
    marked: Counter[int] = Counter()
    for before, token in pairwise(tokens):
        if before == 0:
            marked[token - 1] += 1
    return [symbol for symbol, times in marked.items() if times == max(marked.values())]


def test_the_answer_to_a_copying_sequence() -> None:
    for tokens, label in _samples(_data("copying"), "test"):
        assert len(tokens) == 24
        assert sum(token == 0 for token in tokens) == 24 - 5 - 1, "five symbols and a question, the rest blank"
        assert all(token <= 4 for token in tokens[:-1])
        assert 4 < tokens[-1] <= 4 + 5
        assert label == _copied(tokens, 4)


def test_the_answer_to_a_counting_sequence() -> None:
    for tokens, label in _samples(_data("counting"), "test"):
        assert len(tokens) == 24
        assert sum(token == 0 for token in tokens) == 5
        assert tokens[-1] != 0, "a mark marks something"
        assert all(a or b for a, b in pairwise(tokens))
        assert max(tokens) <= 4
        assert _most_marked(tokens) == [label], "and without a tie"


@pytest.mark.parametrize("kind", KINDS)
def test_symbols_and_places_are_chosen_without_preference(kind: Kind) -> None:
    """Classes of 1/4; a symbol, or a mark's slot, is equally likely at each place."""
    tokens, labels = GENERATORS[kind](8000, length=12, items=3, symbols=4, generator=np.random.default_rng(0))
    assert np.bincount(labels) / 8000 == pytest.approx(
        [0.25] * 4, abs=allowed(4.5 * (0.1875 / 8000) ** 0.5, "4.5 standard errors")
    )
    if kind == "copying":
        assert (tokens[:, :-1] > 0).mean(0) == pytest.approx(
            [3 / 11] * 11, abs=allowed(4.5 * (0.2 / 8000) ** 0.5, "4.5 standard errors")
        )
        assert np.bincount(tokens[:, -1])[5:] / 8000 == pytest.approx(
            [1 / 3] * 3, abs=allowed(4.5 * (0.222 / 8000) ** 0.5, "4.5 standard errors")
        )
    else:
        # 9 slots, of which 3 have a mark: the first token is one in 1/3 of the rows, the last but one too.
        assert (tokens[:, [0, -2]] == 0).mean(0) == pytest.approx(
            [1 / 3] * 2, abs=allowed(4.5 * (0.222 / 8000) ** 0.5, "4.5 standard errors")
        )


def test_the_data_stay_what_they_are() -> None:
    """Digests of today: with others, earlier results no longer compare."""
    digests = {kind: _data(kind).digest[:16] for kind in KINDS}
    assert digests == {"copying": "2d974392e00b4079", "counting": "db34e9ba1f1dd733"}


@pytest.mark.parametrize("kind", KINDS)
def test_splits_have_streams_of_their_own(kind: Kind) -> None:
    small, large, other = _data(kind), _data(kind, train_size=900), _data(kind, data_seed=1)
    assert _samples(small, "val") == _samples(large, "val")
    assert _samples(small, "test") == _samples(large, "test")
    assert len({small.digest, large.digest, other.digest}) == 3
    splits = [{tuple(tokens) for tokens, _ in _samples(small, split)} for split in ("train", "val", "test")]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 1000, "no sequence is in two splits"


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "sorting"},
        {"items": 24},
        {"items": 0},
        {"kind": "counting", "items": 13},
        {"symbols": 1},
        {"symbols": 252},
        {"val_size": 0},
        {"data_seed": -1},
        {"batch_size": 0},
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"symbols at least 2|sizes must be at least 1"):
        SelectiveCopyingDataModule(**{"length": 24, "items": 5, "symbols": 4, **options})


class _Recorder(LightningModule):
    """Notes what each step sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(batch.x.tolist())
        return self.weight * batch.lengths.float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_run_goes_on_with_the_batches_that_it_would_have_seen(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 2}
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{step}", every_n_train_steps=1)
    options: dict[str, Any] = {"train_size": 30, "val_size": 10, "batch_size": 10}
    whole = _Recorder()
    Trainer(callbacks=[saver], **quiet).fit(whole, _data("copying", **options))
    assert len(whole.seen) == 6
    assert whole.seen[:3] != whole.seen[3:], "another order in another epoch"
    rest = _Recorder()
    Trainer(enable_checkpointing=False, **quiet).fit(
        rest, _data("copying", **options), ckpt_path=tmp_path / "step=2.ckpt"
    )
    assert rest.seen == whole.seen[2:]


def test_a_task_of_other_sizes_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--config", "quick/copying/msssm_s6", "--trainer.fast_dev_run=true"]
    small = ["--data.train_size=50", "--data.val_size=50", f"--run_dir={tmp_path}/run"]
    with pytest.raises(SystemExit, match="2"):
        main(["fit", *recipe, *small, "--data.items=5"])
    error = capsys.readouterr().err
    assert "the data have vocab_size=14, the task vocab_size=13: set --model.vocab_size 14" in error
