"""Files of storage and their cache where something fails: servers, disks, processes, and what users write."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stages.base import storage
from stages.base.errors import InputError
from stages.base.storage import Cache, check_place, check_writable, store
from tests.conftest import ROOT, clean_environment

CONTENT = b"0123456789" * 100_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
N_BYTES = len(CONTENT)


class Server(ThreadingHTTPServer):
    """Has one file, of which the second half waits until `goes_on`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.goes_on, self.begun, self.n_asked = threading.Event(), threading.Event(), 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.place = f"http://127.0.0.1:{self.server_port}/folder/{DIGEST}.npy"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.n_asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(N_BYTES))
        self.end_headers()
        self.wfile.write(CONTENT[: N_BYTES // 2])
        self.server.begun.set()
        self.server.goes_on.wait(60)
        self.wfile.write(CONTENT[N_BYTES // 2 :])

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.goes_on.set()
        server.shutdown()


def fetching(server: Server, folder: Path) -> "subprocess.Popen[str]":
    """A process that fetches the file as a stage does."""
    code = f"""
from pathlib import Path
from stages.base.storage import Cache
print(Cache(Path({str(folder)!r}), 10**9).fetched({server.place!r}, {DIGEST!r}, {N_BYTES}).stat().st_size)
"""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, env=clean_environment(), **pipes)


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


def test_two_processes_fetch_a_file_once(server: Server, tmp_path: Path) -> None:
    both = [fetching(server, tmp_path) for _ in range(2)]
    assert server.begun.wait(60)
    time.sleep(2)  # for the other to come up
    server.goes_on.set()
    assert [process.communicate(timeout=60)[0] for process in both] == [f"{N_BYTES}\n"] * 2
    assert server.n_asked == 1
    assert left(tmp_path) == [f"{DIGEST}.npy"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_killed_while_it_fetches(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    process = fetching(server, tmp_path)
    assert server.begun.wait(60)
    while not left(tmp_path):  # the process has it by then, and not the system alone
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert left(tmp_path) == ([f".{DIGEST}.partial"] if number == signal.SIGKILL else [])
    server.goes_on.set()
    file = Cache(tmp_path, 10**9).fetched(server.place, DIGEST, N_BYTES)
    assert file.read_bytes() == CONTENT
    assert left(tmp_path) == [f"{DIGEST}.npy"]


def test_a_server_that_stalls_is_left_in_time(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"^{server.place} cannot be fetched: FSTimeoutError: no answer in time; dvc"):
        Cache(tmp_path, 10**9).fetched(server.place, DIGEST, N_BYTES)
    with (
        FileLock(tmp_path / f".{DIGEST[:2]}.lock"),
        pytest.raises(InputError, match=r"cannot be fetched: The file lock .* could not be acquired.*GB"),
    ):
        Cache(tmp_path, 10**9).fetched(server.place, DIGEST, N_BYTES)
    assert time.monotonic() - started < 15
    assert left(tmp_path) == []


def test_a_folder_gets_whole_files_and_what_is_damaged_there_is_put_back(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.npy", tmp_path / "storage"
    file.write_bytes(CONTENT)
    place = Path(store(file, str(folder), DIGEST))
    before = place.stat()
    store(file, str(folder), DIGEST)
    assert place.stat().st_mtime_ns == before.st_mtime_ns, "it was there"
    place.write_bytes(CONTENT[:-1] + b"x")
    reader = place.open("rb")
    assert store(file, f"file://{folder}", DIGEST) == f"file://{place}"
    assert place.read_bytes() == CONTENT
    assert reader.read()[-1:] == b"x", "it was replaced, not written to"
    assert left(folder) == [place.name]
    check_writable(f"file://{folder}")
    assert left(folder) == [place.name]


FULL = """
mount -t tmpfs -o size=3m none "$1" && shift && exec "$@"
"""


def on_a_small_disk(folder: Path, code: str) -> str:
    """What Python says, with a disk of 3 MB at the folder."""
    folder.mkdir()
    command = ["unshare", "-rm", "sh", "-c", FULL, "sh", str(folder), sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    return (ended.stdout + ended.stderr).strip().splitlines()[-1]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    file, disk = tmp_path / f"{DIGEST}.npy", tmp_path / "disk"
    file.write_bytes(CONTENT)
    code = f"""
from pathlib import Path
from stages.base.storage import Cache, store
cache, file = Cache(Path({str(disk)!r}) / "cache", 10**9), Path({str(file)!r})
cache.folder.mkdir()
(cache.folder / "old.npy").write_bytes(bytes(2_200_000))  # which is in the way of a file of 1 MB
cache.fetched(str(file), {DIGEST!r}, {N_BYTES})
assert not (cache.folder / "old.npy").exists()
(cache.folder / {file.name!r}).unlink()
(cache.folder.parent / "other").write_bytes(bytes(2_200_000))
"""
    fetch = f"cache.fetched(str(file), {DIGEST!r}, {N_BYTES})"
    said = on_a_small_disk(disk, code + fetch)
    assert said.startswith(
        f"stages.base.errors.InputError: {file} cannot be fetched: OSError: [Errno 28] No space left"
    )
    assert said.endswith(f"; {disk}/cache is where it goes, and may take 1 GB, as REPRONET_CACHE_GB says")
    disk.rmdir()
    said = on_a_small_disk(disk, code + f"store(file, {str(disk / 'storage')!r}, {DIGEST!r})")
    assert said.startswith(
        f"stages.base.errors.InputError: {disk}/storage/{file.name} cannot be written: OSError: [Errno 28]"
    )


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(InputError, match=rf"{tmp_path}/home/shards.* may take 1 GB, as REPRONET_CACHE_GB says"):
        Cache(tmp_path / "home/shards", 10**9).fetched("/nowhere/a.npy", DIGEST, 10)


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        ("s3://bucket/a?X-Amz-Signature=secret", r"s3://bucket/a\?X-Amz-Signature=\*\*\*' holds a key"),
        ("s3:key:secret@bucket/a", r"\*\*\*@bucket/a'; accepted"),
        ("key/se/secret@bucket", r"\*\*\*@bucket'; accepted"),
        ("s3://key:sec/secret@bucket", r"s3://\*\*\*@bucket' holds a key"),
        ("s3:///a", "s3:///a'; accepted"),
        ("s3://", "s3://'; accepted"),
        ("file://a/b", "file://a/b'; accepted"),
        ("s3://bucket/a#b", "s3://bucket/a#b'; accepted"),
        ("s3://bucket/a?b", r"s3://bucket/a\?b'; accepted"),
        ("simplecache::s3://bucket/a", "simplecache::s3://bucket/a'; accepted"),
        ("/a::b", "/a::b'; accepted"),
    ],
)
def test_places_that_are_refused_show_no_key(folder: str, shown: str) -> None:
    with pytest.raises(InputError, match=f"^given: '{shown}") as error:
        check_place("given", folder)
    assert "secret" not in str(error.value)


def test_places_that_are_taken(tmp_path: Path) -> None:
    for folder in ("s3://bucket", "s3://bucket/a/b@c", str(tmp_path), f"file://{tmp_path}"):
        check_place("given", folder)
