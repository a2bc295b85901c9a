"""Downloading from a server that cuts, refuses, lies, and ignores ranges."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules.ptbxl import download as downloading
from datamodules.ptbxl.download import download
from tests.support.ptbxl import copy_to

RECORD = "records100/00000/00001_lr.dat"


class _Server(ThreadingHTTPServer):
    """Serves a folder as PhysioNet does, with faults: `fault` gets path and number of the request for it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.ranges: dict[str, str] = {}
        self.faults: dict[str, list[str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{{version}}/"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/1.0.3/")
        self.server.requests[name] += 1
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        path = self.server.folder / name
        if fault == "503" or not path.is_file():
            self.send_error(503 if fault else 404)
            return
        content = path.read_bytes()
        asked = self.headers.get("Range")
        start = 0
        if asked:
            self.server.ranges[name] = asked
            start = 0 if fault == "ignore range" else int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if fault == "cut":
            body = body[: len(body) // 2]
        if fault == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(downloading, "_PAUSE", 0)
    folder = copy_to(tmp_path / "published")
    lines = (folder / "SHA256SUMS.txt").read_text().splitlines()
    kept = [line for line in lines if "records" not in line or "/00000/0000" in line]  # 9
    for line in set(lines) - set(kept):
        (folder / line.split()[1]).unlink()
    (folder / "SHA256SUMS.txt").write_text("".join(f"{line}\n" for line in kept))
    server = _Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_arrives_whole_and_once(server: _Server, tmp_path: Path) -> None:
    download(tmp_path / "ptbxl", 100, url=server.url)
    assert _files(tmp_path / "ptbxl") == _files(server.folder)
    server.requests.clear()
    download(tmp_path / "ptbxl", 100, url=server.url)
    assert server.requests == {"SHA256SUMS.txt": 1}


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        (["503", "503"], 3),
        (["cut"], 2),
        (["cut", "cut", "503"], 4),
        (["flip"], 2),
        (["cut", "ignore range"], 2),
        (["cut", "flip"], 3),
    ],
)
def test_faults_on_the_way_are_made_good(server: _Server, tmp_path: Path, faults: list[str], requests: int) -> None:
    server.faults[RECORD] = list(faults)
    download(tmp_path / "ptbxl", 100, url=server.url)
    assert _files(tmp_path / "ptbxl") == _files(server.folder)
    assert server.requests[RECORD] == requests
    if faults == ["cut"]:
        assert server.ranges[RECORD] == "bytes=12000-"


def test_only_what_is_missing_or_damaged_is_fetched_again(server: _Server, tmp_path: Path) -> None:
    folder = tmp_path / "ptbxl"
    download(folder, 100, url=server.url)
    (folder / RECORD).unlink()
    part = (folder / RECORD).with_name(".00001_lr.dat.part")
    part.write_bytes((server.folder / RECORD).read_bytes()[:5000])  # as a killed download leaves it
    damaged = folder / "records100/00000/00002_lr.dat"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    server.requests.clear()
    download(folder, 100, url=server.url)
    assert set(server.requests) == {"SHA256SUMS.txt", RECORD, "records100/00000/00002_lr.dat"}
    assert server.ranges == {RECORD: "bytes=5000-"}
    assert _files(folder) == _files(server.folder)


def test_a_file_that_is_never_right_is_named_and_not_kept(server: _Server, tmp_path: Path) -> None:
    server.faults[RECORD] = ["flip"] * 10
    with pytest.raises(
        OSError, match=rf"could not download .*{RECORD} in 5 tries: its SHA-256 is not that of SHA256SUMS"
    ):
        download(tmp_path / "ptbxl", 100, url=server.url)
    assert not (tmp_path / "ptbxl" / RECORD).exists()
    server.faults.clear()
    (server.folder / RECORD).unlink()
    with pytest.raises(OSError, match=r"in 5 tries: HTTP Error 404: Not Found"):
        download(tmp_path / "ptbxl", 100, url=server.url)


def test_names_that_leave_the_folder_are_not_fetched(server: _Server, tmp_path: Path) -> None:
    with (server.folder / "SHA256SUMS.txt").open("a") as file:
        file.write(f"{'0' * 64} records100/../../escaped\n{'0' * 64} /etc/escaped\n{'0' * 64} ..\n")
    download(tmp_path / "ptbxl", 100, url=server.url)
    assert not [name for name in server.requests if "escaped" in name or name == ".."]


def test_an_unknown_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"asked to download PTB-XL '2'; choose one of 1.0.3, 1.0.1"):
        download(tmp_path, 100, "2")
