"""`msssm data`: what is missing or corrupt, and a generated data set."""

import re
from pathlib import Path

import pytest

from datamodules import PTBXLDataModule, SequentialCIFARDataModule
from datamodules.ptbxl import verify
from tasks.cli.main import main
from tests.support.cifar10 import accept_tiny, write_archive, write_folder
from tests.support.ptbxl import copy_to


def _out(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_a_generated_data_set_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "generate", "ptbxl", "--root", str(tmp_path), "--count", "200", "--sampling_rates", "500"])
    PTBXLDataModule(root=str(tmp_path), sampling_rate=500).prepare_data()
    capsys.readouterr()
    main(["data", "verify", "ptbxl", "--root", str(tmp_path)])
    assert _out(capsys) == [f"{tmp_path / 'ptbxl'}: whole"]


def test_every_fault_is_named_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_to(tmp_path)
    module = PTBXLDataModule(root=str(tmp_path))
    module.prepare_data()
    (converted,) = folder.glob("converted-*")
    with (converted / "signals.npy").open("r+b") as file:
        file.seek(1000)
        file.write(b"rubbish")
    records = folder / "records100" / "00000"
    (records / "00003_lr.dat").write_bytes(b"short")
    (records / "00004_lr.hea").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["data", "verify", "ptbxl", "--root", str(tmp_path)])
    assert stop.value.code == 1
    assert _out(capsys) == [
        "records100/00000/00003_lr.dat: its SHA-256 is not that of SHA256SUMS.txt",
        "records100/00000/00004_lr.hea: No such file or directory",
        "records100/00000/00003_lr: 00003_lr.dat holds 5 bytes, its header says 24000",
        "records100/00000/00004_lr: 00004_lr.hea is missing",
        f"{converted.name}: chunk 0 is not what was written",
        f"{folder}: 5 faults",
    ]


def test_without_digests_the_records_own_checksums_are_compared(tmp_path: Path) -> None:
    folder = copy_to(tmp_path)
    (folder / "SHA256SUMS.txt").unlink()
    path = folder / "records100" / "00000" / "00003_lr.dat"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    missing, wrong = map(str, verify(folder))
    assert missing == "SHA256SUMS.txt: no such file; only the records' own checksums can be compared"
    assert wrong == "records100/00000/00003_lr: wrong checksum of lead I"


def test_missing_tables_and_records_are_named(tmp_path: Path) -> None:
    folder = copy_to(tmp_path)
    (folder / "scp_statements.csv").unlink()
    (folder / "records100").rename(folder / "elsewhere")
    first, second = map(str, verify(folder))
    assert first == "records100: no such folder, nor records500"
    assert re.fullmatch(r"expected .*/scp_statements.csv, got no such file; it is part of PTB-XL as .*", second)


def test_no_data_set_is_an_error_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "verify", "ptbxl", "--root", str(tmp_path)])
    assert stop.value.code == 2
    assert re.search(r"msssm: expected PTB-XL .* or generate one: msssm data generate ptbxl", capsys.readouterr().err)


def test_faults_of_cifar10_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_archive(tmp_path / "cifar10" / "cifar-10-python.tar.gz")
    command = ["data", "verify", "cifar10", "--root", str(tmp_path)]
    accept_tiny(monkeypatch, source)
    SequentialCIFARDataModule(root=str(tmp_path)).prepare_data()
    main(command)
    assert _out(capsys) == [f"{source}: whole"]
    source.write_bytes(b"cut short")
    (converted,) = source.parent.glob("converted-*")
    with (converted / "pixels.npy").open("r+b") as file:
        file.seek(1000)
        file.write(b"rubbish")
    with pytest.raises(SystemExit):
        main(command)
    first, second, last = _out(capsys)
    assert first == f"{source.name} is missing, or its md5 is not the published one"
    assert re.search(r"converted-.* is damaged .wrong sha256", second)
    assert last == f"{source}: 2 faults"

    folder = write_folder(tmp_path / "elsewhere")
    (folder / "data_batch_2").write_bytes(b"short")
    (folder / "test_batch").unlink()
    with pytest.raises(SystemExit):
        main([*command, "--root", str(tmp_path / "other"), "--source", str(folder)])
    assert [line.split(" ")[0] for line in _out(capsys)[:-1]] == ["data_batch_2", "test_batch"]


def test_a_half_empty_rate_is_summed_up_by_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_to(tmp_path)
    for path in sorted((folder / "records100" / "00000").iterdir())[100:]:
        path.unlink()
    command = ["data", "verify", "ptbxl", "--root", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(command)
    line, total = _out(capsys)
    files, records = 300, 150  # of 200 records of two files
    assert line.startswith(
        f"records100/00000: {files + records} faults of what is missing, the first: records100/00000/00"
    )
    assert total == f"{folder}: {files + records} faults (--verbose lists them all)"
    with pytest.raises(SystemExit):
        main([*command, "--verbose"])
    assert len(_out(capsys)) == files + records + 1


def test_links_are_followed_and_listed_names_stay_inside(tmp_path: Path) -> None:
    """The root, the records and a table on another disk; a list that names a file outside is told so."""
    real = copy_to(tmp_path / "disk")
    folder = tmp_path / "ptbxl"
    folder.mkdir()
    for name in ("records100", "ptbxl_database.csv", "scp_statements.csv", "SHA256SUMS.txt", "SYNTHETIC"):
        (folder / name).symlink_to(real / name)
    (tmp_path / "link").symlink_to(folder)
    assert verify(tmp_path / "link") == []
    module = PTBXLDataModule(root=str(tmp_path / "root"), source=str(tmp_path / "link"))
    module.prepare_data()
    module.setup("fit")
    assert module.describe()["quarantined"] == 0
    digests = (real / "SHA256SUMS.txt").read_text()
    (real / "SHA256SUMS.txt").write_text(f"{digests}{'0' * 64} ../../secret\n{'0' * 64} /etc/passwd\n")
    assert [str(fault) for fault in verify(folder)] == [
        f"{name}: SHA256SUMS.txt names a file outside the data folder" for name in ("../../secret", "/etc/passwd")
    ]
