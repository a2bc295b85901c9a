"""The data module: batches, crops, standardisation, counts, and what it says about bad tables."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from datamodules import ECGBatch, PTBXLDataModule
from datamodules.ptbxl import aggregate_labels, read_database, read_record, read_statements
from datamodules.ptbxl.record import MISSING
from tests.support.ptbxl import COUNT, copy_to
from tests.support.tolerances import FLOAT32, FLOAT64, GRADIENT, allowed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted; for tests that change nothing."""
    root = tmp_path_factory.mktemp("root")
    copy_to(root)
    PTBXLDataModule(root=str(root)).prepare_data()
    return root


def _ready(root: Path, **arguments: Any) -> PTBXLDataModule:
    module = PTBXLDataModule(root=str(root), **{"batch_size": 10, **arguments})
    module.prepare_data()
    module.setup("fit")
    return module


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_hold_standardised_records_and_their_labels(root: Path, num_workers: int) -> None:
    module = _ready(root, label_set="superdiagnostic", num_workers=num_workers)
    table, statements = read_database(root / "ptbxl"), read_statements(root / "ptbxl")
    ids = module.records("test")
    seen = []
    for batch in module.test_dataloader():
        assert isinstance(batch, ECGBatch)
        for x, y, length, record in zip(*batch, strict=True):
            row = table.loc[ids["ecg_id"][int(record)]]
            assert (row["strat_fold"], row["patient_id"]) == (10, ids["patient_id"][int(record)])
            signal = read_record(root / "ptbxl", row["filename_lr"], 100).signal / 1000
            np.testing.assert_allclose(x.numpy(), (signal - module.mean) / module.std, rtol=FLOAT32, atol=FLOAT32)
            names = [name for name, value in zip(module.classes, y, strict=True) if value]
            assert names == aggregate_labels(row["scp_codes"], "superdiagnostic", statements)
            assert length == 1000
            seen.append(int(record))
    assert sorted(seen) == list(range(len(ids)))
    assert {tensor.dtype for tensor in batch} == {torch.float32, torch.int64}


def test_mean_and_standard_deviation_are_those_of_the_training_folds_alone(root: Path) -> None:
    module = _ready(root)
    x = torch.cat([batch.x for batch in module.train_dataloader()]).double()
    assert float(x.mean()) == pytest.approx(0, abs=FLOAT32)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=FLOAT32)
    table = read_database(root / "ptbxl")
    train = table[table["strat_fold"] <= 8]
    samples = np.stack([read_record(root / "ptbxl", name, 100).signal for name in train["filename_lr"]]) / 1000
    assert (module.mean, module.std) == pytest.approx((samples.mean(), samples.std()), rel=FLOAT64)
    assert (module.mean, module.std) != pytest.approx((0.0, 1.0))


def test_folds_share_no_patient(root: Path) -> None:
    module = _ready(root)
    patients = [set(module.records(split)["patient_id"]) for split in ("train", "val", "test")]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert sum(len(module.records(split)) for split in ("train", "val", "test")) == COUNT


def test_training_order_is_a_function_of_seed_and_epoch(root: Path) -> None:
    def epoch(number: int, **arguments: Any) -> list[Tensor]:
        loader = _ready(root, crop=100, **arguments).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return [tensor for batch in loader for tensor in batch]

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.equal(*pair) for pair in zip(a, b, strict=True))

    assert same(epoch(1), epoch(1, num_workers=1))
    assert not same(epoch(1), epoch(2))
    assert not same(epoch(1), epoch(1, shuffle_seed=1))


def test_training_crops_lie_anywhere_in_their_record(root: Path) -> None:
    module = _ready(root, crop=250)
    whole = {
        int(r): x for batch in _ready(root).train_dataloader() for x, r in zip(batch.x, batch.sample_index, strict=True)
    }
    starts = []
    for batch in module.train_dataloader():
        assert batch.x.shape[1:] == (250, 12)
        for x, record in zip(batch.x, batch.sample_index, strict=True):
            windows = whole[int(record)].unfold(0, 250, 1).transpose(1, 2)
            (start,) = torch.nonzero((windows - x).abs().amax(dim=(1, 2)) == 0).flatten().tolist()
            starts.append(start)
    assert len(starts) == len(whole)
    # uniform on 0..750: standard deviation 217, of the mean 217 / sqrt(160) = 17
    assert np.mean(starts) == pytest.approx(375, abs=allowed(4 * 217 / len(starts) ** 0.5, "4 standard errors"))
    assert np.std(starts) == pytest.approx(217, rel=allowed(0.15, "4 standard errors of 160 draws"))


@pytest.mark.parametrize(
    ("crop", "stride", "starts"),
    [
        (250, 250, [0, 250, 500, 750]),
        (250, None, [0, 125, 250, 375, 500, 625, 750]),
        (300, 300, [0, 300, 600, 700]),
        (1000, None, [0]),
        (None, None, [0]),
    ],
)
def test_evaluation_windows_cover_the_record(
    root: Path, crop: int | None, stride: int | None, starts: list[int]
) -> None:
    whole = torch.cat([batch.x for batch in _ready(root).val_dataloader()])
    batches = list(_ready(root, crop=crop, stride=stride, eval_batch_size=7).val_dataloader())
    windows = torch.cat([batch.x for batch in batches]).unflatten(0, (len(whole), len(starts)))
    for index, start in enumerate(starts):
        assert torch.equal(windows[:, index], whole[:, start : start + (crop or 1000)])
    assert all(len(batch.x) == len(batch.y) * len(starts) == len(batch.lengths) for batch in batches)


def test_records_without_a_class_are_dropped_and_counted(root: Path) -> None:
    module = _ready(root, label_set="form")
    table, statements = read_database(root / "ptbxl"), read_statements(root / "ptbxl")
    unlabelled = sum(not aggregate_labels(codes, "form", statements) for codes in table["scp_codes"])
    about = module.describe()
    assert about["dropped_without_label"] == unlabelled > 0
    assert sum(about["counts"].values()) == COUNT - unlabelled
    labels = torch.cat([batch.y for batch in module.train_dataloader()])
    assert labels.any(dim=1).all()
    assert list(about["positives"]["train"].values()) == labels.sum(dim=0).tolist()


def test_a_likelihood_threshold_takes_labels_away(root: Path) -> None:
    every, certain = (_ready(root, label_set="diagnostic", likelihood=limit).describe() for limit in (None, 100))
    assert every["dropped_without_label"] == 0
    assert certain["positives"]["train"]["ISC_"] == 0 < every["positives"]["train"]["ISC_"]
    assert certain["positives"]["train"]["NORM"] == every["positives"]["train"]["NORM"]
    assert certain["digest"] != every["digest"]


def test_generated_data_says_so(tmp_path: Path, root: Path) -> None:
    assert _ready(root).describe()["synthetic"] is True
    shutil.copytree(root / "ptbxl", tmp_path / "ptbxl")
    (tmp_path / "ptbxl" / "SYNTHETIC").unlink()
    assert _ready(tmp_path).describe()["synthetic"] is False


def test_asked_for_synthetic_data_generates_them_once_and_apart(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def generate(root: Path, count: int, **options: Any) -> Path:
        calls.append((count, options))
        return copy_to(root)

    monkeypatch.setattr("datamodules.ptbxl.datamodule.generate", generate)
    copy_to(tmp_path)
    real = {path.name for path in (tmp_path / "ptbxl").iterdir()}
    for _ in range(2):
        module = _ready(tmp_path, synthetic=200, synthetic_seed=3)
    assert calls == [(200, {"seed": 3, "sampling_rates": (100,), "progress": True})]
    assert module.describe()["synthetic"] is True
    assert module.digest == _ready(root).digest
    assert {path.name for path in (tmp_path / "ptbxl").iterdir()} == real
    other = _ready(tmp_path, synthetic=200, synthetic_seed=4)
    assert len(calls) == 2
    assert module.folder != other.folder
    assert {module.folder.parent.parent, other.folder.parent.parent} == {tmp_path / "ptbxl-synthetic"}


def test_missing_samples_become_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_to(tmp_path)
    module = _ready(tmp_path)
    converted = module._need()
    row = module._rows["test"][0]
    with (converted.folder / "signals.npy").open("r+b") as file:
        file.seek(128 + 2 * 12 * (1000 * int(row) + 17) + 2 * 5)
        file.write(np.int16(MISSING).tobytes())
    x = next(iter(module.test_dataloader())).x[0]
    assert x[17, 5] == 0
    assert x.abs().max() < 100


class _Tiny(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(12, 71)

    def training_step(self, batch: ECGBatch) -> Tensor:
        logits = self.head(batch.x.mean(dim=1))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.y)

    def test_step(self, batch: ECGBatch) -> None:
        self.log("mean_of_x", batch.x.mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def _trainer(folder: Path) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=folder, max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip


def test_standardisation_travels_with_the_checkpoint(tmp_path: Path, root: Path) -> None:
    module = PTBXLDataModule(root=str(root))
    trainer = _trainer(tmp_path)
    trainer.fit(_Tiny(), module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    stored = state["PTBXLDataModule"]
    assert (stored["mean"], stored["std"], stored["classes"]) == (module.mean, module.std, module.classes)
    stored["mean"], stored["std"] = 2.0, 4.0
    torch.save(state, tmp_path / "b.ckpt")
    again = PTBXLDataModule(root=str(root))
    (metrics,) = _trainer(tmp_path).test(_Tiny(), again, ckpt_path=str(tmp_path / "b.ckpt"), verbose=False)
    assert (again.mean, again.std) == (2.0, 4.0)
    plain = torch.cat([batch.x for batch in module.test_dataloader()]) * module.std + module.mean
    assert metrics["mean_of_x"] == pytest.approx(float((plain.mean() - 2) / 4), abs=GRADIENT[torch.float32])
    other = PTBXLDataModule(root=str(root), label_set="form")
    with pytest.raises(ValueError, match=r"checkpoint is for 71 classes at 100 Hz, the data has the 19 of form"):
        _trainer(tmp_path).test(_Tiny(), other, ckpt_path=str(tmp_path / "b.ckpt"), verbose=False)


def test_corrupt_records_stop_the_run_unless_that_many_are_allowed(tmp_path: Path) -> None:
    folder = copy_to(tmp_path)
    for ecg_id in (3, 40):
        path = folder / "records100" / "00000" / f"{ecg_id:05d}_lr.dat"
        path.write_bytes(path.read_bytes()[:-2])
    message = (
        r"2 of 200 records of PTB-XL are corrupt, records100/00000/00003_lr for one: 00003_lr.dat holds 23998 bytes, "
        r"its header says 24000; all are listed in .*meta.json"
    )
    with pytest.raises(ValueError, match=message + r"\. Replace them .*: --data.max_corrupt 2"):
        _ready(tmp_path, max_corrupt=1)
    with pytest.warns(UserWarning, match=message + r"\. They are left out"):
        module = _ready(tmp_path, max_corrupt=2)
    ids = pd.concat([module.records(split) for split in ("train", "val", "test")])["ecg_id"]
    assert sorted(ids) == [i for i in range(1, COUNT + 1) if i not in (3, 40)]
    assert module.describe()["quarantined"] == 2


def test_a_zip_or_another_folder_is_taken_as_source(tmp_path: Path, root: Path) -> None:
    folder = copy_to(tmp_path / "other")
    expected = _ready(root).digest
    from_folder = _ready(tmp_path / "a", source=str(folder))
    assert from_folder.digest == expected
    assert not list(folder.glob("*converted*"))
    with zipfile.ZipFile(tmp_path / "ptb.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, Path("ptb-xl-1.0.3") / path.relative_to(folder))
        archive.writestr("ptb-xl-1.0.3/../../escaped.txt", "no")
        archive.writestr("ptb-xl-1.0.3/records500/00000/00001_hr.dat", "not wanted at 100 Hz")
    from_zip = _ready(tmp_path / "b", source=str(tmp_path / "ptb.zip"))
    assert from_zip.digest == expected
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not list((tmp_path / "b").rglob("records500"))


def test_a_folder_inside_the_root_is_found(tmp_path: Path, root: Path) -> None:
    shutil.move(copy_to(tmp_path / "x"), tmp_path / "ptbxl" / "ptb-xl-1.0.3")
    assert _ready(tmp_path).digest == _ready(root).digest


@pytest.mark.parametrize("size", [0, 1000, -1000])
def test_a_broken_zip_is_named(tmp_path: Path, size: int) -> None:
    folder = copy_to(tmp_path / "other")
    archive = Path(shutil.make_archive(str(tmp_path / "ptb"), "zip", folder))
    archive.write_bytes(archive.read_bytes()[: size or None] if size else b"")
    with pytest.raises(ValueError, match=r"ptb.zip is damaged .*; download it again"):
        _ready(tmp_path, source=str(archive))


EMPTY = "ecg_id,patient_id,scp_codes,strat_fold,filename_lr,filename_hr\n"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("ptbxl_database.csv", None, "", "is not a table"),
        ("ptbxl_database.csv", None, "ecg_id,patient_id\n", "has no column scp_codes, strat_fold, filename_lr"),
        ("ptbxl_database.csv", None, EMPTY, "ptbxl_database.csv has no records"),
        ("ptbxl_database.csv", "'NORM': 100.0", "'XYZ': 100.0", "got the SCP codes XYZ, which scp_statements.csv does"),
        ("ptbxl_database.csv", "{'NORM': 100.0", "['NORM': 100.0", r"ecg_id \d+: expected scp_codes like"),
        ("ptbxl_database.csv", "\n2,", "\n1,", "has ecg_id 1 more than once"),
        (
            "ptbxl_database.csv",
            ",records100",
            "1,records100",
            r"has a record without a patient_id or a strat_fold of 1\.\.10",
        ),
        ("scp_statements.csv", None, "", "is not a table"),
        ("scp_statements.csv", None, ",description\n", "scp_statements.csv has no rows"),
        ("scp_statements.csv", "diagnostic_class", "other", "has no column diagnostic_class"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, name: str, old: str | None, new: str, message: str) -> None:
    path = copy_to(tmp_path) / name
    text = path.read_text()
    assert old is None or old in text
    path.write_text(new if old is None else text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        _ready(tmp_path)


def test_a_fold_without_records_is_named(tmp_path: Path) -> None:
    path = copy_to(tmp_path) / "ptbxl_database.csv"
    pd.read_csv(path).query("strat_fold != 9").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"got no record of the val folds"):
        _ready(tmp_path)


def test_data_is_asked_for_before_it_is_there(tmp_path: Path) -> None:
    module = PTBXLDataModule(root=str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"expected PTB-XL with its ptbxl_database.csv in .*/ptbxl, got no such"
    ):
        module.prepare_data()
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        module.train_dataloader()
    copy_to(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"got no such folder; call prepare_data\(\) first"):
        module.setup("fit")
    with pytest.raises(FileNotFoundError, match=r"from .*nothing.zip, got no such file"):
        PTBXLDataModule(root=str(tmp_path), source=str(tmp_path / "nothing.zip")).prepare_data()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_set": "subclass"}, "asked for label_set='subclass'"),
        ({"sampling_rate": 250}, "choose one of .* and 100 or 500 Hz"),
        ({"crop": 1001}, "asked for crop=1001, stride=None; a crop is 1 to 1000 samples at 100 Hz"),
        ({"stride": 5}, "a stride of at least 1 goes with a crop"),
        ({"crop": 5, "stride": 0}, "a stride of at least 1"),
        ({"batch_size": 0}, "sizes must be at least 1"),
        ({"max_corrupt": -1}, "max_corrupt=-1; it must be at least 0"),
        ({"synthetic": 199}, "generate at least 200 records"),
        ({"synthetic": 200, "source": "x"}, "source=x, download=None; .* name no other data"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PTBXLDataModule(**arguments)


def test_records_that_are_not_there_at_all_are_one_sentence(tmp_path: Path) -> None:
    folder = copy_to(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"expected PTB-XL's records at 500 Hz in .*records500, got no such folder"
    ):
        PTBXLDataModule(root=str(tmp_path), sampling_rate=500).prepare_data()
    (folder / "records500").symlink_to(tmp_path / "disk")
    with pytest.raises(
        FileNotFoundError, match=r"got a link to .*/disk, which is not there; put them there, or choose"
    ):
        PTBXLDataModule(root=str(tmp_path), sampling_rate=500).prepare_data()
