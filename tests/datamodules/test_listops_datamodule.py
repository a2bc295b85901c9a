"""The data module: batches, splits, caches, official files, and what it says about bad ones."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import Batch, ListOpsDataModule
from datamodules.listops import decode, evaluate, generate, store
from datamodules.listops.datamodule import ExpressionDataset
from tests.support.tolerances import allowed

SMALL: dict[str, Any] = {
    "min_length": 10,
    "max_length": 64,
    "max_depth": 6,
    "max_args": 5,
    "train_size": 103,
    "val_size": 30,
    "test_size": 20,
    "batch_size": 10,
}


def _ready(root: Path, **arguments: Any) -> ListOpsDataModule:
    module = ListOpsDataModule(root=str(root), **{**SMALL, **arguments})
    module.prepare_data()
    module.setup("fit")
    return module


def _folder(root: Path) -> Path:
    (folder,) = [path for path in (root / "listops").iterdir() if not path.name.startswith(".")]
    return folder


def _expressions(loader: Any) -> list[tuple[str, int]]:
    return [
        (" ".join(decode(x[:length].numpy())), int(y))
        for batch in loader
        for x, y, length in zip(batch.x, batch.y, batch.lengths, strict=True)
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_padded_expressions_and_their_values(tmp_path: Path, num_workers: int) -> None:
    module = _ready(tmp_path, num_workers=num_workers, eval_batch_size=15)
    sizes = []
    samples = []
    for batch in module.val_dataloader():
        assert isinstance(batch, Batch)
        samples += batch.sample_index.tolist()
        assert batch.x.shape == (len(batch.y), int(batch.lengths.max()))
        assert {tensor.dtype for tensor in batch} == {torch.int64}
        for x, y, length in zip(batch.x, batch.y, batch.lengths, strict=True):
            assert evaluate(decode(x[:length].numpy())) == y
            assert not x[length:].any()
        sizes.append(len(batch.y))
    assert sizes == [15, 15]
    assert sorted(samples) == list(range(30))


def test_training_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    def order(epoch: int, **arguments: Any) -> list[tuple[str, int]]:
        loader = _ready(tmp_path, **arguments).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return _expressions(loader)

    assert order(1) == order(1, num_workers=1)
    assert order(1) != order(2)
    assert order(1) != order(1, shuffle_seed=1)
    assert sorted(order(1)) == sorted(order(2))
    assert len(order(1)) == 103


def test_an_epoch_begins_with_short_expressions(tmp_path: Path) -> None:
    long: dict[str, Any] = {"min_length": 30, "max_length": 100}
    plain = _ready(tmp_path, **long)
    module = _ready(tmp_path, **long, short_size=41, short_max_length=16, short_batch_size=20)
    assert sorted(len(batch.y) for batch in list(module.train_dataloader())[:3]) == [1, 20, 20]
    expressions = _expressions(module.train_dataloader())
    lengths = [decoded.count(" ") + 1 - decoded.count("]") + decoded.count("[") for decoded, _ in expressions]
    assert all(2 < length < 16 for length in lengths[:41])
    assert all(30 < length < 100 for length in lengths[41:])
    assert sorted(expressions[41:]) == sorted(_expressions(plain.train_dataloader()))
    assert len(set(expressions[:41])) == 41
    for loader in ("val_dataloader", "test_dataloader"):
        assert _expressions(getattr(module, loader)()) == _expressions(getattr(plain, loader)())
    about, before = module.describe(), plain.describe()
    assert about.pop("counts") == before.pop("counts") | {"short": 41}
    assert about.pop("digest") != before.pop("digest")
    assert about == before
    with pytest.raises(ValueError, match=r"asked for 5 short expressions of less than 31 tokens, with min_length=30"):
        _ready(tmp_path, **long, short_size=5, short_max_length=31)
    with pytest.raises(ValueError, match=r"asked for short_batch_size=0; it must be at least 1"):
        _ready(tmp_path, **long, short_batch_size=0)


def test_splits_are_one_distinct_stream_test_first(tmp_path: Path) -> None:
    module = _ready(tmp_path)
    splits = [
        _expressions(loader()) for loader in (module.test_dataloader, module.val_dataloader, module.train_dataloader)
    ]
    limits = {name: SMALL[name] for name in ("min_length", "max_length", "max_depth", "max_args")}
    stream = generate(153, seed=0, **limits)
    assert [sorted(split) for split in splits] == [sorted(part) for part in (stream[:20], stream[20:50], stream[50:])]
    assert len({expression for split in splits for expression, _ in split}) == 153


def test_train_size_leaves_val_and_test_alone(tmp_path: Path) -> None:
    small, large = _ready(tmp_path / "a"), _ready(tmp_path / "b", train_size=500)
    assert _expressions(small.val_dataloader()) == _expressions(large.val_dataloader())
    assert _expressions(small.test_dataloader()) == _expressions(large.test_dataloader())
    assert small.digest != large.digest


def test_describe(tmp_path: Path) -> None:
    module = _ready(tmp_path, train_size=4000, test_size=4000)
    about = module.describe()
    assert about["counts"] == {"train": 4000, "val": 30, "test": 4000}
    assert about["digest"] == module.digest
    # standard deviation 13.6, 4 * 13.6 / sqrt(4000) = .86; 4 * sqrt(.24 * .76 / 4000) = .027
    assert about["mean_length"]["train"] == pytest.approx(27.6, abs=allowed(0.86, "4 standard errors"))
    assert about["root_operator_accuracy"] == pytest.approx(0.24, abs=allowed(0.027, "4 standard errors"))


def test_data_is_asked_for_before_it_is_there(tmp_path: Path) -> None:
    module = ListOpsDataModule(root=str(tmp_path), **SMALL)
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        module.train_dataloader()
    with pytest.raises(FileNotFoundError, match=r"no such folder; call prepare_data\(\) first"):
        module.setup("fit")


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"eval_batch_size": -1}, {"train_size": 0}, {"test_size": -3}]
)
def test_sizes_below_one_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        ListOpsDataModule(**{**SMALL, **arguments})


def test_an_index_is_a_batch_of_one(tmp_path: Path) -> None:
    dataset = ExpressionDataset(store.load(_folder_of(tmp_path))[0]["val"])
    assert dataset[3].x.tolist() == dataset[[3]].x.tolist()
    assert len(dataset) == 30


def _folder_of(root: Path) -> Path:
    _ready(root)
    return _folder(root)


def test_cache_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = _ready(tmp_path).digest
    monkeypatch.setattr("datamodules.listops.datamodule.generate_arrays", None)
    assert _ready(tmp_path).digest == digest


def _flip_a_byte(folder: Path) -> None:
    path = folder / "val.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _truncate(folder: Path) -> None:
    path = folder / "train.tokens.npy"
    path.write_bytes(path.read_bytes()[:-100])


def _shorten_an_array(folder: Path) -> None:
    np.save(folder / "test.labels.npy", np.load(folder / "test.labels.npy")[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_byte,
        _truncate,
        _shorten_an_array,
        lambda folder: (folder / "train.offsets.npy").unlink(),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: (folder / "test.labels.npy").write_bytes(b""),
    ],
)
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: Any) -> None:
    digest = _ready(tmp_path).digest
    damage(_folder(tmp_path))
    with pytest.warns(UserWarning, match="is damaged .*building it again"):
        assert _ready(tmp_path).digest == digest
    assert [path.name for path in (tmp_path / "listops").glob("[!.]*")] == [_folder(tmp_path).name]


def test_what_a_killed_writer_leaves_is_not_taken_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    splits = _splits(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store.json, "dumps", killed)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            store.build(tmp_path / "listops" / "key", lambda: splits, {})
    (left,) = [path for path in (tmp_path / "listops").iterdir() if path.name.startswith(".key")]
    assert (left / "train.tokens.npy").is_file()
    assert not (tmp_path / "listops" / "key").exists()
    store.build(tmp_path / "listops" / "key", lambda: splits, {})
    assert store.load(tmp_path / "listops" / "key", verify=True)[0]["val"].samples == 30


def _splits(root: Path) -> dict[str, Any]:
    return _ready(root / "other")._splits


def test_builders_at_once_share_the_winner(tmp_path: Path) -> None:
    splits = _splits(tmp_path)
    folder = tmp_path / "listops" / "key"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.build(folder, lambda: splits, {}), range(8)))
    assert store.load(folder, verify=True)[0].keys() == splits.keys()
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "key"]


def _write_official(folder: Path, sizes: tuple[int, int, int] = (40, 10, 10)) -> None:
    """LRA's files: csv with tabs and \\r\\n, each expression in left-associated pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    data = iter(generate(sum(sizes), seed=9, min_length=10, max_length=64, max_depth=6, max_args=5))
    for split, size in zip(store.SPLITS, sizes, strict=True):
        rows = [next(data) for _ in range(size)]
        lines = ["Source\tTarget", *(f"{_in_pairs(expression)}\t{label}" for expression, label in rows)]
        (folder / f"basic_{split}.tsv").write_bytes("".join(f"{line}\r\n" for line in lines).encode())


def _in_pairs(expression: str) -> str:
    stack: list[str] = []
    for token in expression.split():
        if token.startswith("["):
            stack.append(token)
            continue
        if token == "]":
            token = f"( {stack.pop()} ] )"
        if stack:
            stack[-1] = f"( {stack[-1]} {token} )"
    return token


def test_pairs_are_written_as_lra_writes_them() -> None:
    assert _in_pairs("[MAX 2 9 ]") == "( ( ( [MAX 2 ) 9 ) ] )"
    assert _in_pairs("[SM 1 [MAX 2 9 ] ]") == "( ( ( [SM 1 ) ( ( ( [MAX 2 ) 9 ) ] ) ) ] )"


def test_official_files_give_the_expressions_they_hold(tmp_path: Path) -> None:
    _write_official(tmp_path / "tsv")
    module = _ready(tmp_path / "data", tsv_dir=str(tmp_path / "tsv"))
    stream = generate(60, seed=9, min_length=10, max_length=64, max_depth=6, max_args=5)
    assert sorted(_expressions(module.train_dataloader())) == sorted(stream[:40])
    assert sorted(_expressions(module.test_dataloader())) == sorted(stream[50:])
    assert module.describe()["counts"] == {"train": 40, "val": 10, "test": 10}


def test_changed_official_files_are_converted_anew(tmp_path: Path) -> None:
    _write_official(tmp_path / "tsv")
    first = _ready(tmp_path / "data", tsv_dir=str(tmp_path / "tsv")).digest
    _write_official(tmp_path / "tsv", (39, 11, 10))
    assert _ready(tmp_path / "data", tsv_dir=str(tmp_path / "tsv")).digest != first


def test_a_missing_official_file_is_named(tmp_path: Path) -> None:
    _write_official(tmp_path)
    (tmp_path / "basic_val.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=rf"files in {tmp_path}, got no basic_val.tsv; copy them there"):
        _ready(tmp_path / "data", tsv_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "( ( ( [MAX 2 ) 9 ) ] )\t9", r"expected the header 'Source\\tTarget'"),
        (3, "( ( ( [MAX 2 ) 9 ) ] )\t8", "expected the value 9 that the expression has, got '8'"),
        (4, "( ( [MAX 2 ) 9 )\t9", r"expected 1 more '\]', got the end"),
        (5, "( ( ( [AVG 2 ) 9 ) ] )\t9", r"got '\[AVG' as token 1"),
        (6, "( ( ( [MAX 2 ) 9 ) ] )", r"got 1 column\(s\)"),
        (7, "", r"got 1 column\(s\)"),
    ],
)
def test_a_bad_official_row_is_named(tmp_path: Path, line: int, text: str, message: str) -> None:
    _write_official(tmp_path)
    path = tmp_path / "basic_val.tsv"
    lines = path.read_text().split("\n")
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"basic_val.tsv, line {line}: .*{message}.*; copy the file"):
        _ready(tmp_path / "data", tsv_dir=str(tmp_path))


def test_an_official_file_without_rows_is_refused(tmp_path: Path) -> None:
    _write_official(tmp_path)
    (tmp_path / "basic_test.tsv").write_text("Source\tTarget\n")
    with pytest.raises(ValueError, match=r"basic_test.tsv, line 2: expected a row"):
        _ready(tmp_path / "data", tsv_dir=str(tmp_path))


def test_duplicates_across_official_splits_are_counted(tmp_path: Path) -> None:
    _write_official(tmp_path)
    shutil.copy(tmp_path / "basic_val.tsv", tmp_path / "basic_test.tsv")
    with pytest.warns(UserWarning, match="10 expressions occur in more than one split"):
        _ready(tmp_path / "data", tsv_dir=str(tmp_path))


def test_predict_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "expressions.txt"
    file.write_text("[MAX 2 9 [MIN 4 7 ] 0 ]\n\n( ( ( [MIN 2 ) 9 ) ] )\n  \n7\n")
    module = ListOpsDataModule(root=str(tmp_path), predict_file=str(file), batch_size=2)
    module.setup("predict")
    assert _expressions(module.predict_dataloader()) == [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MIN 2 9 ]", 2),
        ("7", 7),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[MAX 2 9 ]\n\n[MAX 2 x ]\n",
            r"expressions.txt, line 3: .*got 'x' as token 3; correct or remove the line",
        ),
        ("\n\n", "got no line; write one expression per line"),
        (None, "no such file; check predict_file"),
    ],
)
def test_bad_predict_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "expressions.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ListOpsDataModule(root=str(tmp_path), predict_file=str(file)).setup("predict")


def test_predict_without_a_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got predict_file=None; name a text file"):
        ListOpsDataModule(root=str(tmp_path)).setup("predict")
