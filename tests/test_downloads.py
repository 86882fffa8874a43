"""Downloads, against small servers on this machine."""

import hashlib
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mammomil import downloads
from mammomil.downloads import REMOTE, Remote, fetch
from mammomil.files import InputError

BODY = np.random.default_rng(0).bytes(150_000)
SHA = hashlib.sha256(BODY).hexdigest()


@contextmanager
def serve(body=BODY, *, ranges=True, cut=0, status=200, together=1):
    """Serve `body`; the first `cut` answers stop half way, and none begins before `together` came to ask."""
    asked, meeting = [], threading.Barrier(together)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range"))
            start = int(asked[-1].removeprefix("bytes=").rstrip("-")) if asked[-1] and ranges else 0
            code = status if status != 200 else 416 if start >= len(body) else 206 if start else 200
            content = body[start:] if code in (200, 206) else b"sorry"
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            if code == 206:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            if len(asked) <= cut:
                content = content[: len(content) // 2]
            meeting.wait(60)
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/some/file.csv", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def direct_and_quick(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sleep = time.sleep
    monkeypatch.setattr("pooch.core.time.sleep", lambda s: sleep(0.05))  # pooch waits to retry


def remote(monkeypatch, url, body=BODY, sha=SHA):
    monkeypatch.setitem(
        REMOTE, "thing", Remote("thing", url, sha, len(body), "none", "Or pass --thing FILE.")
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_then_needs_no_server(monkeypatch, tmp_path):
    with serve() as (url, asked):
        remote(monkeypatch, url)
        path = fetch("thing", tmp_path)
        assert path.read_bytes() == BODY
        assert path == tmp_path / "thing.csv"
        assert fetch("thing", tmp_path) == path
    assert asked == [None]
    assert fetch("thing", tmp_path) == path  # the server is gone
    assert names(tmp_path) == ["thing.csv"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_cache_can_be_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMMOMIL_CACHE", str(tmp_path / "cache"))
    with serve() as (url, _):
        remote(monkeypatch, url)
        assert fetch("thing") == tmp_path / "cache" / "thing.csv"
        assert fetch("thing", tmp_path / "other") == tmp_path / "other" / "thing.csv"


def test_a_cut_download_goes_on_where_it_stopped(monkeypatch, tmp_path):
    with serve(cut=1) as (url, asked):
        remote(monkeypatch, url)
        assert fetch("thing", tmp_path).read_bytes() == BODY
    first, second = asked
    assert first is None
    start = int(second.removeprefix("bytes=").rstrip("-"))
    assert 75_000 - downloads._CHUNK < start <= 75_000
    assert names(tmp_path) == ["thing.csv"]


def test_a_later_call_goes_on_with_the_part(monkeypatch, tmp_path):
    with serve(cut=2) as (url, asked):
        remote(monkeypatch, url)
        with pytest.raises(InputError, match=r"cannot be fetched .* again, or put"):
            fetch("thing", tmp_path)
        assert names(tmp_path) == ["thing.csv.part"]
        kept = (tmp_path / "thing.csv.part").read_bytes()
        assert len(kept) > 75_000
        assert BODY.startswith(kept)
        assert fetch("thing", tmp_path).read_bytes() == BODY
    assert asked[2] == f"bytes={len(kept)}-"


def test_a_server_without_ranges_sends_all_again(monkeypatch, tmp_path):
    with serve(cut=1, ranges=False) as (url, asked):
        remote(monkeypatch, url)
        assert fetch("thing", tmp_path).read_bytes() == BODY
    assert len(asked) == 2


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * 149_999, b"x" * 150_000, b"x" * 200_000])
def test_a_part_of_another_file_is_thrown_away(monkeypatch, tmp_path, part):
    (tmp_path / "thing.csv.part").write_bytes(part)
    with serve() as (url, _):
        remote(monkeypatch, url)
        assert fetch("thing", tmp_path).read_bytes() == BODY
    assert names(tmp_path) == ["thing.csv"]


def test_a_part_beyond_the_end_of_the_servers_file_is_thrown_away(monkeypatch, tmp_path):
    """The server answers 416 to a range it does not have; the next try asks for everything."""
    (tmp_path / "thing.csv.part").write_bytes(b"x" * 1000)
    with serve(b"short") as (url, asked):
        remote(monkeypatch, url)
        with pytest.raises(InputError, match=hashlib.sha256(b"short").hexdigest()):
            fetch("thing", tmp_path)
    assert asked == ["bytes=1000-", None]


def test_a_damaged_file_in_the_cache_is_replaced(monkeypatch, tmp_path):
    (tmp_path / "thing.csv").write_bytes(BODY[:-1])
    with serve() as (url, _):
        remote(monkeypatch, url)
        assert fetch("thing", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("body", [b"<html>Log in to the hotel's network</html>", BODY + bytes(10_000_000)])
def test_a_wrong_checksum_is_an_error_that_names_both_and_leaves_nothing(monkeypatch, tmp_path, body):
    with serve(body) as (url, asked):
        remote(monkeypatch, url)
        with pytest.raises(InputError, match="what came has sha256") as caught:
            fetch("thing", tmp_path)
    found = hashlib.sha256(body).hexdigest() if len(body) < len(BODY) else "sha256 "  # cut off when too long
    assert all(
        words in str(caught.value) for words in (url, SHA, found, str(tmp_path / "thing.csv"), "--thing")
    )
    assert names(tmp_path) == []
    assert len(asked) == 2


def test_a_missing_file_and_a_missing_network_are_one_sentence_with_the_fix(monkeypatch, tmp_path):
    with serve(status=404) as (url, _):
        remote(monkeypatch, url)
        with pytest.raises(InputError, match="404 Not Found") as caught:
            fetch("thing", tmp_path)
    with pytest.raises(InputError, match="ConnectionError") as offline:  # nobody listens at the port any more
        fetch("thing", tmp_path)
    for error in (caught, offline):
        said = str(error.value)
        assert all(
            words in said for words in (url, SHA, str(tmp_path / "thing.csv"), "Or pass --thing FILE.")
        )
        assert "\n" not in said
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_one_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    remote(monkeypatch, "http://127.0.0.1:9/file.csv")
    with pytest.raises(InputError, match="MAMMOMIL_CACHE"):
        fetch("thing", tmp_path / "file")
    with pytest.raises(InputError, match=r"no such download\. There is: reader-study-scores"):
        fetch("nothing", tmp_path)


def test_two_processes_can_fetch_the_same_file_at_the_same_time(tmp_path):
    """Both find the same part of it; neither spoils the other's copy."""
    (tmp_path / "thing.csv.part").write_bytes(BODY[:30_000])
    with serve(together=2) as (url, asked):
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from mammomil.downloads import REMOTE, Remote, fetch\n"
            f"REMOTE['thing'] = Remote('thing', {url!r}, {SHA!r}, {len(BODY)}, '', '')\n"
            f"print(fetch('thing', Path({str(tmp_path)!r})))\n"
        )
        both = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=120)[0].strip() for process in both]
    assert said == [str(tmp_path / "thing.csv")] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "thing.csv").read_bytes() == BODY
    assert names(tmp_path) == ["thing.csv"]
    assert sorted(map(str, asked)) == ["None", "bytes=30000-"]


def test_the_registry_is_complete():
    for name, entry in REMOTE.items():
        assert entry.name == name
        assert entry.url.startswith("https://")
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.bytes > 0
        assert entry.licence
        assert entry.note.endswith(".")
