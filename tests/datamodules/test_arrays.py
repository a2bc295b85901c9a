"""One's own sequences: splits, crops, augmentation, resuming, digests, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules import ArrayDataModule, Batch
from datamodules.arrays.augmentation import Augmentation
from datamodules.arrays.source import Target
from datamodules.batching import LengthBucketBatchSampler
from msssm.errors import InputError
from tests.support.arrays import COUNT, write_folder
from tests.support.tolerances import FLOAT32, allowed

CHANGES: dict[str, Any] = {"shift": 5, "scaling": 0.5, "noise": 0.1, "mask": 6, "drop": 0.3, "crop": 12}
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that change nothing."""
    return write_folder(tmp_path_factory.mktemp("own") / "data")


def ready(root: Path, **options: Any) -> ArrayDataModule:
    data = ArrayDataModule(str(root), **{"batch_size": 5, **options})
    data.setup("fit")
    return data


def epoch(data: ArrayDataModule, number: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    return list(loader)


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs: list[Any] = [pair for one, other in zip(a, b, strict=True) for pair in zip(one, other, strict=True)]
    return all(torch.equal(x, y) for x, y in pairs)


def members(data: ArrayDataModule, column: str, root: Path) -> list[set[str]]:
    """Values of a column of the table in each split."""
    table = pd.read_csv(root / "labels.csv")
    return [set(table[column].iloc[data.split(name).rows]) for name in SPLITS]


def test_batches_hold_the_files_and_their_labels(folder: Path) -> None:
    data = ready(folder, split_column="split")
    table = pd.read_csv(folder / "labels.csv")
    assert (data.channels, data.outputs, data.names) == (2, 2, ["high", "low"])
    for name, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        rows, seen = table[table["split"] == name], []
        for batch in loader:
            assert batch.x.shape == (len(batch.y), int(batch.lengths.max()), 2)
            for x, y, length, index in zip(*batch, strict=True):
                row = rows.iloc[int(index)]
                np.testing.assert_array_equal(x[:length].numpy(), np.load(folder / row["file"]))
                assert not x[length:].any()
                assert data.names[int(y)] == row["label"]
                seen.append(int(index))
        assert sorted(seen) == list(range(len(rows))) == list(range(data.counts()[name]))
    first = data.split("train").sequences.array(0)
    assert isinstance(first, np.memmap), "files stay on disk"


def test_groups_are_in_one_split_and_a_random_split_is_a_function_of_its_seed(folder: Path) -> None:
    data = ready(folder, group_column="patient", val_fraction=0.25, test_fraction=0.2)
    patients = members(data, "patient", folder)
    assert [len(each) for each in patients] == [11, 5, 4]
    assert len(set.union(*patients)) == 20
    assert sum(data.counts().values()) == COUNT
    again, other = (ready(folder, group_column="patient", data_seed=seed) for seed in (0, 1))
    assert members(again, "file", folder) == members(ready(folder, group_column="patient"), "file", folder)
    assert members(again, "file", folder) != members(other, "file", folder)
    assert [len(each) for each in members(ready(folder), "file", folder)] == [32, 4, 4]


def test_the_training_data_are_a_function_of_seed_epoch_and_sample(folder: Path) -> None:
    data = ready(folder, **CHANGES)
    first = epoch(data, 3)
    assert same(first, epoch(ready(folder, **CHANGES, num_workers=2), 3))
    assert not same(first, epoch(data, 4))
    assert not same(first, epoch(ready(folder, **CHANGES, shuffle_seed=1), 3))
    chosen = {int(index): x for batch in first for x, index in zip(batch.x, batch.sample_index, strict=True)}  # type: ignore[arg-type]
    whole, dataset = ready(folder).split("train"), data.split("train")
    for index, x in chosen.items():
        raw = whole[[index]].x[0].numpy()
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, 3, index])))
        start = int(draw.integers(len(raw) - 12 + 1))
        piece, _ = dataset.augment(raw[start : start + 12], np.zeros(0, np.int64), draw)
        np.testing.assert_array_equal(x.numpy(), piece)
        assert torch.equal(dataset[[index + 4 * len(dataset)]].x[0], x), "whatever its batch"


def test_each_augmentation_does_what_it_says() -> None:
    draw = np.random.default_rng(0)
    mean, scale = np.array([[3, -2, 0.5], [2, 1, 4]], dtype=np.float32)
    x, steps = (mean + scale * draw.standard_normal((500, 3))).astype(np.float32), np.arange(500)

    def change(**options: Any) -> tuple[Any, Any]:
        given = x.copy()
        changed = Augmentation(**options, mean=mean, scale=scale)(x, steps, draw)
        np.testing.assert_array_equal(x, given, "the argument stays as it is")
        assert changed[0].dtype == np.float32
        return changed

    np.testing.assert_array_equal(change()[0], x)
    moved, moved_steps = change(shift=7)
    np.testing.assert_array_equal(moved, x[moved_steps])
    assert (np.diff(moved_steps) % 500 == 1).all()
    assert min(moved_steps[0], 500 - moved_steps[0]) <= 7
    factors = [(change(scaling=0.2)[0] - mean) / (x - mean) for _ in range(100)]
    assert all(np.median(np.abs(each - np.median(each))) < FLOAT32 for each in factors)
    assert 0.8 <= np.median(factors, axis=(1, 2)).min() < 0.9 < 1.1 < np.median(factors, axis=(1, 2)).max() <= 1.2
    noise = (change(noise=0.1)[0] - x) / scale
    assert noise.std(axis=0) == pytest.approx([0.1] * 3, rel=allowed(0.13, "4 standard errors of 500 draws"))
    widths = []
    for _ in range(200):
        hidden = (change(mask=9)[0] == mean).all(axis=1)
        places = np.flatnonzero(hidden)
        assert len(places) == 0 or places[-1] - places[0] + 1 == len(places)
        widths.append(len(places))
    assert set(widths) == set(range(10))
    dropped = np.array([(change(drop=0.3)[0] == mean).all(axis=0) for _ in range(400)])
    assert dropped.mean() == pytest.approx(0.3, abs=allowed(4 * (0.21 / 1200) ** 0.5, "4 standard errors"))


def test_labels_of_steps_stay_with_their_steps(folder: Path) -> None:
    """The second channel counts the steps, and their labels are its remainders."""
    for options in ({}, {"crop": 12, "shift": 4}):
        data = ready(folder, target="step", labels=["steps"], **options)
        assert data.names == ["0", "1", "2"]
        for batch in [*epoch(data), *data.val_dataloader()]:
            true = torch.arange(batch.x.shape[1]) < batch.lengths[:, None]
            assert torch.equal(batch.y[true], batch.x[..., 1][true].long() % 3)
            assert (batch.y[~true] == -1).all()


def test_evaluation_takes_the_whole_or_the_centre(folder: Path) -> None:
    whole, centre = (ready(folder, crop=13, evaluation=each).split("test") for each in ("whole", "center"))
    for index in range(len(whole)):
        x = whole[[index]].x[0]
        start = (len(x) - 13) // 2
        assert torch.equal(centre[[index]].x[0], x[start : start + 13])
    lengths = ready(folder, crop=30, evaluation="center").lengths("test")
    np.testing.assert_array_equal(lengths, np.minimum(ready(folder).lengths("test"), 30))


def test_mean_and_scale_are_those_of_the_training_split(folder: Path) -> None:
    data = ready(folder, split_column="split", target="regression", labels=["level"])
    table = pd.read_csv(folder / "labels.csv").query("split == 'train'")
    x = np.concatenate([np.load(folder / file) for file in table["file"]]).astype(np.float64)
    np.testing.assert_allclose(data.mean, x.mean(axis=0), rtol=FLOAT32)
    np.testing.assert_allclose(data.scale, x.std(axis=0), rtol=FLOAT32)
    assert data.target_mean[0] == pytest.approx(table["level"].mean(), rel=FLOAT32)
    assert data.target_scale[0] == pytest.approx(table["level"].std(ddof=0), rel=FLOAT32)
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    constant = ArrayDataModule.from_arrays(np.full((10, 4, 1), 7.0), [0, 1] * 5, splits=splits)
    constant.setup("fit")
    assert (constant.mean.tolist(), constant.scale.tolist()) == ([7.0], [1.0])
    single = ArrayDataModule.from_arrays([np.arange(n) for n in range(1, 11)], [0, 1] * 5, splits=splits)
    single.setup("fit")
    assert single.channels == 1, "(L,) is (L, 1)"
    plain = ready(folder, standardize=False)
    assert (plain.mean.tolist(), plain.scale.tolist()) == ([0, 0], [1, 1])


def test_a_loader_resumes_within_an_epoch(folder: Path) -> None:
    whole, rest = epoch(ready(folder, **CHANGES), 2), ready(folder, **CHANGES, num_workers=2).train_dataloader()
    rest.load_state_dict({"epoch": 2, "done": 3})  # type: ignore[attr-defined]
    assert same(list(rest), whole[3:])


def test_two_processes_share_the_batches_of_one(folder: Path) -> None:
    data = ready(folder, batch_size=8, **CHANGES)
    whole, dataset = epoch(data, 1), data.split("train")
    for rank in (0, 1):
        sampler = data.training_sampler(4, rank, 2)
        assert isinstance(sampler, LengthBucketBatchSampler)
        sampler.set_epoch(1)
        for batch, keys in zip(whole, sampler, strict=True):
            assert torch.equal(batch.x[rank::2], dataset[keys].x)


def test_the_digest_is_of_sequences_labels_and_splits(folder: Path, tmp_path: Path) -> None:
    data, table = ready(folder, split_column="split"), pd.read_csv(folder / "labels.csv")
    arrays = [np.load(folder / file) for file in table["file"]]

    def digest(x: list[Any], labels: Any, splits: Any) -> str:
        made = ArrayDataModule.from_arrays(x, labels, splits=splits)
        made.setup("fit")
        return made.digest

    kinds, splits = table["label"].to_numpy(), table["split"].to_numpy()
    assert data.digest == digest(arrays, kinds, splits) == ready(folder, split_column="split", crop=5).digest
    touched, renamed, moved = arrays[0].copy(), kinds.copy(), splits.copy()
    touched[3, 1] += 1
    renamed[0] = "low" if renamed[0] == "high" else "high"
    moved[0] = "val"
    others = {
        digest([touched, *arrays[1:]], kinds, splits),
        digest(arrays, renamed, splits),
        digest(arrays, kinds, moved),
    }
    assert len(others | {data.digest}) == 4
    assert data.describe()["synthetic"] is False


@pytest.mark.parametrize(("target", "outputs"), [("class", 3), ("labels", 2), ("regression", 1), ("step", 2)])
@pytest.mark.filterwarnings("ignore:no root is given")
def test_example_data_are_called_synthetic(target: Target, outputs: int) -> None:
    data = ArrayDataModule(target=target)
    data.setup("fit")
    assert data.describe()["synthetic"] is True
    assert (data.channels, data.outputs, sum(data.counts().values())) == (2, outputs, 480)
    assert len(set(data.lengths("train"))) > 1  # type: ignore[arg-type]


def table_without(column: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        table = pd.read_csv(root / "labels.csv")
        table.drop(columns=column).to_csv(root / "labels.csv", index=False)

    return change


def table_with(column: str, value: Any, row: int = 3) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        table = pd.read_csv(root / "labels.csv").astype(object)
        table.loc[row, column] = value
        table.to_csv(root / "labels.csv", index=False)

    return change


def array_with(value: Any, name: str = "x3.npy") -> Callable[[Path], None]:
    return lambda root: np.save(root / name, value, allow_pickle=True)


GAP = np.where(np.arange(60).reshape(30, 2) == 21, np.nan, 1.0)
STEPS: dict[str, Any] = {"target": "step", "labels": ["steps"]}
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (lambda root: (root / "labels.csv").unlink(), {}, "asked for the table .*got no such file; write a CSV"),
    (lambda root: (root / "x3.npy").unlink(), {}, "got no x3.npy in .*; correct the table"),
    (table_without("label"), {}, "asked for the columns label of .*, got file, steps, high, .*; correct data.labels"),
    (table_with("label", ""), {}, "a value in every row of the column label .* got none in row 5"),
    (table_with("file", "../x.npy"), {}, "expected files inside of .* got ../x.npy"),
    (array_with(GAP), {}, "expected finite numbers in .*x3.npy, got nan at step 10 of channel 1; fill the gaps"),
    (array_with(np.full((9, 2), 1e300)), {}, "expected finite numbers in .*x3.npy, got inf at step 0"),
    (array_with(np.ones((9, 3))), {}, "expected 2 channels, as in .*x0.npy, got 3 in .*x3.npy"),
    (array_with(np.array([{}])), {}, "asked for the array .*x3.npy, got a file that is none .*numpy.save"),
    (array_with(np.array(["a"])), {}, "expected numbers of shape .*x3.npy, got <U1 of shape"),
    (lambda root: (root / "x3.npy").write_bytes(b"x"), {}, "x3.npy, got a file that is none"),
    (table_with("label", "rare", 7), {"split_column": "split"}, "got rare in test alone; choose another"),
    (table_with("split", "dev"), {"split_column": "split"}, "expected the splits train, val and test, got dev"),
    (table_with("patient", "p0", 39), {"split_column": "split", "group_column": "patient"}, "got p0 in 2 of them"),
    (lambda root: write_folder(root, 2), {}, "asked to split 2 sequences of 2 groups, got none for train"),
    (table_with("large", 2), {"target": "labels", "labels": ["high", "large"]}, "0 or 1 in the labels large, got '2'"),
    (table_with("level", "x"), {"target": "regression", "labels": ["level"]}, "in the labels level, got 'x'"),
    (array_with(np.zeros(4, int), "y3.npy"), STEPS, "expected .. integers from 0 on, a class of each step of .*x3.npy"),
    (array_with(np.zeros(30), "y0.npy"), STEPS, "integers from 0 on"),
    (lambda root: None, {"target": "labels", "labels": ["high"]}, "got high alone; for one column of 0 and 1 take"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "options", "message"), REFUSED)
def test_what_cannot_be_trained_on_is_refused(
    spoil: Callable[[Path], None], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    root = write_folder(tmp_path)
    spoil(root)
    with pytest.raises(InputError, match=message):
        ready(root, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "words"}, "choose one of class, labels, regression, step"),
        ({"root": "x", "labels": ["a", "b"]}, "with one column for class and step"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "below 1 together"),
        ({"evaluation": "center"}, "'center' with a crop"),
        ({"drop": 1.0}, "below 1"),
        ({"split_column": "split"}, "got no table; name its folder as root"),
        ({"shuffle_seed": 0, "mask": -1}, "must be at least 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArrayDataModule(**options)


def test_arrays_of_other_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"'sequences': 3, 'labels': 2\}"):
        ArrayDataModule.from_arrays(np.zeros((3, 4)), [0, 1])
    with pytest.raises(InputError, match="got an array of shape"):
        ArrayDataModule.from_arrays(np.zeros((3, 4)), np.zeros((3, 2)))
