"""Downloading CIFAR-10 from mirrors that are gone, cut, refuse, or serve something else."""

import re
import threading
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from datamodules import SequentialCIFARDataModule
from datamodules.cifar10 import datamodule, files
from datamodules.cifar10.download import MIRRORS, NAME, RETRIES, download
from tests.support.cifar10 import accept_tiny, contents, write_archive

CONTENT = bytes(range(256)) * 1000


class _Server(ThreadingHTTPServer):
    """Two mirrors /a/ and /b/ of one file; `faults` of a mirror are used up one by one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.faults: dict[str, list[str]] = {"a": [], "b": []}
        self.requests: list[tuple[str, str | None]] = []

    @property
    def mirrors(self) -> list[str]:
        return [f"http://127.0.0.1:{self.server_address[1]}/{mirror}/{NAME}" for mirror in ("a", "b")]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        mirror, asked = self.path.split("/")[1], self.headers.get("Range")
        self.server.requests.append((mirror, asked))
        faults = self.server.faults[mirror]
        fault = faults.pop(0) if faults else ""
        if fault in ("404", "503"):
            self.send_error(int(fault))
            return
        content = self.server.content if fault != "other" else b"<html>moved</html>"
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "other" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setitem(files.ARCHIVES, NAME, md5(CONTENT).hexdigest())
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ([], [("a", None)]),
        (["cut"], [("a", None), ("a", "bytes=128000-")]),
        (["cut", "cut"], [("a", None), ("a", "bytes=128000-"), ("a", "bytes=192000-")]),
        (["503", "other"], [("a", None), ("a", None), ("a", None)]),
        (
            ["cut", "cut", "cut"],
            [*(("a", r) for r in (None, "bytes=128000-", "bytes=192000-")), ("b", "bytes=224000-")],
        ),
        (["404"] * 3, [("a", None)] * 3 + [("b", None)]),
        (["other"] * 3, [("a", None)] * 3 + [("b", None)]),
    ],
)
def test_faults_are_made_good_by_resuming_and_by_the_next_mirror(
    server: _Server, tmp_path: Path, faults: list[str], requests: list[tuple[str, str | None]]
) -> None:
    server.faults["a"] = list(faults)
    assert download(tmp_path, server.mirrors) == tmp_path / NAME
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.requests == requests
    assert [path.name for path in tmp_path.iterdir()] == [NAME], "nothing unfinished is left"


def test_what_is_there_and_whole_is_not_fetched_again(server: _Server, tmp_path: Path) -> None:
    download(tmp_path, server.mirrors)
    download(tmp_path, server.mirrors)
    assert len(server.requests) == 1
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    download(tmp_path, server.mirrors)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_another_run_goes_on_where_one_stopped(server: _Server, tmp_path: Path) -> None:
    server.faults = {"a": ["cut"] + ["503"] * RETRIES, "b": ["503"] * 3}
    with pytest.raises(OSError, match="run it again to resume"):
        download(tmp_path, server.mirrors)
    assert not (tmp_path / NAME).exists()
    server.requests.clear()
    download(tmp_path, server.mirrors)
    assert server.requests == [("a", "bytes=128000-")]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_file_with_another_digest_is_never_kept(server: _Server, tmp_path: Path) -> None:
    server.faults = {"a": ["503"] * 3, "b": ["other"] * 3}
    with pytest.raises(OSError, match=r"from any mirror; .*name a local archive or folder as source") as error:
        download(tmp_path, server.mirrors)
    answers = str(error.value)
    assert re.search(r"/a/cifar-10-python.tar.gz: .*503", answers)
    assert re.search(r"/b/cifar-10-python.tar.gz: .*hash", answers)
    assert list(tmp_path.iterdir()) == []


def test_the_data_module_downloads_only_when_asked(
    server: _Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_archive(tmp_path / "published" / NAME, contents())
    accept_tiny(monkeypatch, source)
    server.content = source.read_bytes()
    monkeypatch.setattr(datamodule, "download", lambda folder: download(folder, server.mirrors))
    with pytest.raises(FileNotFoundError, match=r"--data.download true"):
        SequentialCIFARDataModule(root=str(tmp_path)).prepare_data()
    assert server.requests == []
    data = SequentialCIFARDataModule(root=str(tmp_path), download=True, batch_size=10)
    data.prepare_data()
    data.setup("fit")
    assert np.array(data.describe()["counts"]["train"]) == 90


def test_mirrors_serve_the_archive_over_https() -> None:
    assert all(url.startswith("https://") and url.endswith(f"/{NAME}") for url in MIRRORS)
    assert len(MIRRORS) > 1
