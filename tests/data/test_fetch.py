import hashlib
import io
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from salf.data.fetch import cache_folder, fetch
from salf.errors import DataUnavailable

FILES = {"images.gz": b"many images" * 1000, "labels.gz": b"as many labels"}


@dataclass
class Mirror:
    """A web server on this machine: its files, whether it breaks off half-way, and the requests it got."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    breaks_off: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path.removeprefix("/"))
            content = served.files.get(served.asked[-1])
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if served.breaks_off else content)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Mirror(f"http://127.0.0.1:{server.server_port}/", dict(FILES))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def dead() -> str:
    """Return the address of a port without a listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


CHECKSUMS = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in FILES.items()}


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_fetched_only_once(tmp_path: Path, mirror: Mirror, dead: str) -> None:
    folder = tmp_path / "cache" / "mnist"
    fetch(CHECKSUMS, [mirror.address], folder)
    assert held(folder) == FILES
    fetch(CHECKSUMS, [dead], folder)
    assert held(folder) == FILES
    assert mirror.asked == list(FILES)


def test_fetching_is_quiet_and_leaves_the_logger_as_it_was(tmp_path: Path, mirror: Mirror) -> None:
    logger, messages = pooch.get_logger(), io.StringIO()
    handler, level = logging.StreamHandler(messages), logger.level
    logger.addHandler(handler)
    try:
        fetch(CHECKSUMS, [mirror.address], tmp_path)
    finally:
        logger.removeHandler(handler)
    assert messages.getvalue() == ""
    assert logger.level == level


def test_a_dead_mirror_is_passed_over_and_not_tried_again(tmp_path: Path, mirror: Mirror, dead: str) -> None:
    fetch(CHECKSUMS, [dead, f"{mirror.address}nowhere/", mirror.address], tmp_path)
    assert held(tmp_path) == FILES
    assert mirror.asked == ["nowhere/images.gz", "images.gz", "labels.gz"]


def test_a_wrong_file_is_refused_and_nothing_is_kept(tmp_path: Path, mirror: Mirror) -> None:
    mirror.files["images.gz"] = b"other images"
    with pytest.raises(DataUnavailable, match=r"images.gz cannot be downloaded .* has another file") as caught:
        fetch(CHECKSUMS, [mirror.address], tmp_path)
    assert "--set data.root=DIR" in str(caught.value)
    assert held(tmp_path) == {}


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, mirror: Mirror) -> None:
    mirror.breaks_off = True
    with pytest.raises(DataUnavailable, match=r"images.gz cannot be downloaded"):
        fetch(CHECKSUMS, [mirror.address], tmp_path)
    assert held(tmp_path) == {}
    mirror.breaks_off = False
    fetch(CHECKSUMS, [mirror.address], tmp_path)
    assert held(tmp_path) == FILES


def test_a_harmed_file_in_the_cache_is_fetched_again(tmp_path: Path, mirror: Mirror) -> None:
    (tmp_path / "labels.gz").write_bytes(b"half of th")
    fetch(CHECKSUMS, [mirror.address], tmp_path)
    assert held(tmp_path) == FILES


def test_every_mirror_is_named_with_its_failure(tmp_path: Path, mirror: Mirror, dead: str) -> None:
    gone = f"{mirror.address}gone/"
    with pytest.raises(DataUnavailable) as caught:
        fetch(CHECKSUMS, [dead, gone], tmp_path)
    message = str(caught.value)
    assert f"{dead} failed (NewConnectionError" in message
    assert f"{gone} failed (404 Client Error" in message


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataUnavailable, match=r"cannot be made: Not a directory; set .* SALF_CACHE"):
        fetch(CHECKSUMS, [], tmp_path / "file" / "mnist")


def test_the_environment_chooses_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SALF_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("SALF_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("SALF_CACHE", "")
    assert cache_folder().name == "salf"
    monkeypatch.setenv("SALF_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(DataUnavailable, match="SALF_CACHE is '~nobody-of-that-name/cache'"):
        cache_folder()
