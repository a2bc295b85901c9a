"""`make fuzz`: atheris, which follows the coverage of our code, at each reader for its share of FUZZ_MINUTES.

A reader may give an answer or one of its documented errors. Another exception, 10 seconds or 2 GiB for one file end the
search, and the file lies in `.fuzz/`. `tests/robustness/test_fuzz.py` is the short form that every test run contains.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from datamodules.listops import evaluate, official, tokenize
from datamodules.listops.predict_file import read_expressions
from datamodules.ptbxl import CorruptRecordError, files, read_record
from tasks.run.checkpoint_io import CheckpointFormatError, DamagedCheckpointError, DurableCheckpointIO, read_checkpoint
from tests.robustness.test_fuzz import OURS, TSV, write_record
from tests.support.ptbxl import copy_to

FOUND = Path(".fuzz")
INSTRUMENTED = """
import atheris
with atheris.instrument_imports(include=["datamodules", "tasks"]):
    from tests.robustness.fuzz import search
"""


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


def _file(name: str, content: bytes) -> Path:
    path = _folder() / name
    path.unlink(missing_ok=True)  # a file that is emptied and written again is brought to the disk at once by ext4
    path.write_bytes(content)
    return path


def expression(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert evaluate(tokenize(content.decode(errors="replace"))) in range(10)


def listops_tsv(content: bytes) -> None:
    with contextlib.suppress(*OURS):
        official.read_split(_file("basic_train.tsv", content))


def expressions(content: bytes) -> None:
    with contextlib.suppress(*OURS):
        read_expressions(str(_file("expressions.txt", content)))


def ptbxl_table(name: str, read: Callable[[Path], object], content: bytes) -> None:
    with contextlib.suppress(*OURS):
        read(_file(name, content).parent)


def _table(name: str) -> bytes:
    lines = (files.find(copy_to(Path(tempfile.mkdtemp()))) / name).read_bytes().splitlines(keepends=True)
    return b"".join(lines[:5])


@cache
def _record() -> dict[str, bytes]:
    folder = Path(tempfile.mkdtemp())
    write_record(folder, "16")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wfdb(broken: str, content: bytes) -> None:
    for name, whole in _record().items():
        _file(name, content if name == broken else whole)
    with contextlib.suppress(CorruptRecordError):
        assert read_record(_folder(), "r", 100).signal.shape == (1000, 12)


def checkpoint(content: bytes) -> None:
    with contextlib.suppress(DamagedCheckpointError, CheckpointFormatError):
        read_checkpoint(_file("last.ckpt", content))


def _small_checkpoint() -> bytes:
    path = _folder() / "whole.ckpt"
    DurableCheckpointIO().save_checkpoint({"global_step": 7, "state_dict": {}}, path)
    return path.read_bytes()


# A reader, and a valid file to begin with.
TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], bytes]]] = {
    "expression": (expression, lambda: b"( ( ( [MAX 2 ) 9 ) ] )"),
    "expressions": (expressions, lambda: b"[MAX 2 9 ]\n[SM 5 [MIN 6 4 ] ]\n"),
    "listops_tsv": (listops_tsv, lambda: TSV),
    "ptbxl_database": (partial(ptbxl_table, files.DATABASE, files.read_database), partial(_table, files.DATABASE)),
    "ptbxl_statements": (
        partial(ptbxl_table, files.STATEMENTS, files.read_statements),
        partial(_table, files.STATEMENTS),
    ),
    "wfdb_header": (partial(wfdb, "r.hea"), lambda: _record()["r.hea"]),
    "wfdb_signal": (partial(wfdb, "r.dat"), lambda: _record()["r.dat"]),
    "checkpoint": (checkpoint, _small_checkpoint),
}


def search(name: str, seconds: int) -> None:
    """Fuzzes one reader in this process, which ends with it."""
    import atheris

    run, whole = TARGETS[name]
    corpus = Path(tempfile.mkdtemp())
    (corpus / "whole").write_bytes(whole())
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={FOUND}/{name}-"]
    atheris.Setup([sys.argv[0], *options, "-max_len=65536", "-print_final_stats=1", str(corpus)], run)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", choices=TARGETS)
    options = parser.parse_args()
    shutil.rmtree(FOUND, ignore_errors=True)
    FOUND.mkdir()
    names = [options.only] if options.only else list(TARGETS)
    failed = False
    for name in names:
        seconds = int(options.minutes * 60 / len(names))
        script = INSTRUMENTED + f"search({name!r}, {seconds})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, errors="replace")
        runs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        print(
            f"{name:18} {int(runs[-1]) if runs else 0:>9,} files, coverage {coverage[-1] if coverage else '?':>5}",
            end="",
        )
        print("" if done.returncode == 0 else f"  FAILED\n{done.stderr[-3000:]}", flush=True)
        failed |= done.returncode != 0
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
