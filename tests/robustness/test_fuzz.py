"""Whatever a file holds, its reader gives a right answer or one of our own errors, and writes nothing elsewhere."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from datamodules.listops import evaluate, official, tokenize
from datamodules.listops.expressions import VOCABULARY
from datamodules.listops.predict_file import read_expressions
from datamodules.ptbxl import LEADS, CorruptRecordError, files, read_record, read_recording, simulate
from msssm.errors import InputError
from tasks.cli.main import main
from tasks.run.checkpoint_io import CheckpointFormatError, DamagedCheckpointError, DurableCheckpointIO, read_checkpoint
from tests.support.ptbxl import copy_to
from tests.support.recipes import write_recipe

OURS = (ValueError, OSError)
TREES = st.recursive(
    st.integers(0, 9),
    lambda inner: st.tuples(st.sampled_from(["MIN", "MAX", "MED", "SM"]), st.lists(inner, min_size=1, max_size=5)),
    max_leaves=30,
)


def _mutated(original: bytes) -> st.SearchStrategy[bytes]:
    """`original` with a few bytes replaced, inserted or cut out."""

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = original
        for where, length, new in edits:
            start = where % (len(content) + 1)
            content = content[:start] + new + content[start + length :]
        return content

    edit = st.tuples(st.integers(0, 2**20), st.sampled_from([0, 1, 4, 100, 2**20]), st.binary(max_size=8))
    return st.lists(edit, min_size=1, max_size=4).map(apply)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """An inner folder, for an outer one that must stay as it is."""
    with tempfile.TemporaryDirectory() as outer:
        inner = Path(outer) / "a/b/data"
        inner.mkdir(parents=True)
        yield inner
        assert [path for path in Path(outer).rglob("*") if path.is_file() and inner not in path.parents] == []


def _written(tree: object) -> str:
    return str(tree) if isinstance(tree, int) else f"( [{tree[0]} {' '.join(map(_written, tree[1]))} ) ]"  # type: ignore[index]


def _value(tree: object) -> int:
    if isinstance(tree, int):
        return tree
    name, arguments = tree  # type: ignore[misc]
    values = sorted(map(_value, arguments))
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) // 2
    return {"MIN": values[0], "MAX": values[-1], "MED": median, "SM": sum(values) % 10}[name]


@given(TREES)
def test_an_expression_has_the_value_of_its_tree(tree: object) -> None:
    assert evaluate(tokenize(_written(tree))) == _value(tree)


@given(st.one_of(st.text(), st.lists(st.sampled_from([*VOCABULARY, "(", ")", "10", ""])).map(" ".join)))
def test_an_expression_that_is_none_is_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert evaluate(tokenize(text)) in range(10)


TSV = b"Source\tTarget\n( [MAX 2 9 ) ]\t9\n( ( [MIN ( [SM 5 6 ) ] ) 4 ) ]\t1\n7\t7\n"


@given(st.one_of(st.binary(), _mutated(TSV)))
def test_official_files_and_files_to_predict(content: bytes) -> None:
    with _folder() as folder:
        path = folder / "basic_train.tsv"
        path.write_bytes(content)
        for read in (official.read_split, lambda path: read_expressions(str(path))):
            with contextlib.suppress(*OURS):
                data = read(path)
                assert data.samples >= 1
                assert set(data.labels) <= set(range(10))


@pytest.fixture(scope="module")
def ptbxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.find(copy_to(tmp_path_factory.mktemp("fuzz")))


@given(st.data())
def test_tables_of_ptbxl(ptbxl: Path, data: st.DataObject) -> None:
    readers = (
        (files.DATABASE, files.read_database),
        (files.STATEMENTS, files.read_statements),
        (files.DIGESTS, files.read_digests),
    )
    for name, read in readers:
        original = (ptbxl / name).read_bytes()[:3000] if (ptbxl / name).exists() else b"0123abc  a/b.dat\n" * 3
        with _folder() as folder:
            (folder / name).write_bytes(data.draw(st.one_of(st.binary(), _mutated(original)), label=name))
            with contextlib.suppress(*OURS):
                read(folder)


def write_record(folder: Path, fmt: str) -> None:
    count = len(LEADS)
    digital = simulate("SR", 0, np.random.default_rng(0)).astype(np.int64) // 20
    options = {"fs": 100, "units": ["mV"] * count, "adc_gain": [1000.0] * count, "baseline": [0] * count}
    wfdb.wrsamp("r", sig_name=list(LEADS), write_dir=str(folder), fmt=[fmt] * count, d_signal=digital, **options)


@pytest.fixture(scope="module", params=["16", "212"])
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a record: of the format of PTB-XL, and of another."""
    folder = tmp_path_factory.mktemp("record")
    write_record(folder, request.param)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.data())
def test_records(record: dict[str, bytes], data: st.DataObject) -> None:
    """Read as a part of PTB-XL and as a recording of one's own, or refused with a reason."""
    broken = data.draw(st.sampled_from(sorted(record)))
    with _folder() as folder:
        for name, content in record.items():
            (folder / name).write_bytes(data.draw(_mutated(content)) if name == broken else content)
        with contextlib.suppress(CorruptRecordError):
            assert read_record(folder, "r", 100).signal.shape == (1000, 12)
        with contextlib.suppress(InputError):
            assert np.isfinite(read_recording(folder / "r.hea", 100, fill_missing="zero").signal).all()


def _table() -> bytes:
    rows = [" ; ".join(LEADS), *(";".join(f"{value / 1000}" for value in row) for row in SIGNAL[:150])]
    return "\n".join(["Sampling rate: 100 Hz", *rows]).encode()


def _array() -> bytes:
    file = io.BytesIO()
    np.save(file, SIGNAL[:150] / 1000)
    return file.getvalue()


SIGNAL = simulate("SR", 0, np.random.default_rng(0))


@pytest.mark.parametrize(("name", "original"), [("a.csv", _table()), ("a.npy", _array())])
@given(st.data())
def test_tables_and_arrays_of_samples(name: str, original: bytes, data: st.DataObject) -> None:
    options = data.draw(st.sampled_from([{}, {"given_rate": 100.0, "given_leads": LEADS}]))
    with _folder() as folder:
        (folder / name).write_bytes(data.draw(st.one_of(st.binary(), _mutated(original))))
        with contextlib.suppress(InputError):
            read_recording(folder / name, 100, fill_missing="zero", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_recipe(tmp_path_factory.mktemp("recipe")).read_bytes()


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just("${seed_everything}")
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=settings().max_examples // 4, phases=[Phase.generate])  # a parse takes too long to shrink
@given(st.data())
def test_recipes(recipe: bytes, data: st.DataObject) -> None:
    """Parsed and printed, or refused in a line or more; never a traceback, and nothing is trained or written."""
    tree = yaml.safe_load(recipe)
    place = tree
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            place[key] = data.draw(VALUES)
            break
        place = place[key]
    content = data.draw(st.one_of(st.just(yaml.safe_dump(tree).encode()), _mutated(recipe)))
    with _folder() as folder:
        (folder / "recipe.yaml").write_bytes(content)
        errors = io.StringIO()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
            pytest.raises(SystemExit) as caught,
        ):
            main(["fit", "--config", str(folder / "recipe.yaml"), "--print_config"])
        assert caught.value.code in (0, 2)
        assert "Traceback" not in errors.getvalue()
        assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def _content() -> dict[str, object]:
    return {"global_step": 7, "state_dict": {"weight": torch.arange(500.0)}, "hyper_parameters": {"lr": 0.5}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    DurableCheckpointIO().save_checkpoint(_content(), path)
    return path.read_bytes()


@settings(max_examples=4 * settings().max_examples)
@given(st.data())
def test_checkpoints(checkpoint: bytes, data: st.DataObject) -> None:
    """A changed file is refused, unless the change does not touch what it holds: no weight changes in silence."""
    content = data.draw(st.one_of(st.binary(), _mutated(checkpoint)))
    with _folder() as folder:
        (folder / "last.ckpt").write_bytes(content)
        with contextlib.suppress(DamagedCheckpointError, CheckpointFormatError):
            read = read_checkpoint(folder / "last.ckpt")
            assert read["global_step"] == 7
            assert torch.equal(read["state_dict"]["weight"], torch.arange(500.0))
