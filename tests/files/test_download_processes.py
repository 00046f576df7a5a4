"""Several processes at one cache, and what a process that was killed leaves there."""

import hashlib
import os
import signal
import zipfile
from pathlib import Path

import pytest

from files import downloads, http
from files.downloads import cached_path, get_from_cache
from files.pretrained import pretrained_file
from scripts import download_data
from tests.helpers.file_server import kept, quick, serve

BODY = bytes(range(256)) * 8000  # 32 chunks
BLOB_ID = hashlib.sha1(b"blob %d\0" % len(BODY) + BODY).hexdigest()
PATH = "/bert/resolve/main/vocab.txt"


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    quick(tmp_path, monkeypatch)


def course_file(url, folder):
    """Run download_data for one file, of which git's id is BLOB_ID."""
    download_data.BLOB_IDS = {"vocab.txt": BLOB_ID}
    download_data.main(["--data_dir", str(folder), "--base_url", f"{url}{PATH.removesuffix('/vocab.txt')}"])
    return str(folder / "vocab.txt")


@pytest.mark.parametrize("given, fetch", [
    ("the same file", lambda url, folder: pretrained_file("bert", ("vocab.txt",))),
    ("the course's data", course_file)])
def test_eight_processes_download_once(given, fetch, tmp_path, monkeypatch, record):
    with serve({PATH: BODY}) as server:
        monkeypatch.setenv("MINBERT_HUB", server.url)
        start, go = os.pipe()
        answers, answer = os.pipe()
        children = []
        for _ in range(8):
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    os.close(go)
                    os.read(start, 1)  # all of them wait for the end of this pipe
                    os.write(answer, fetch(server.url, tmp_path / "data").encode() + b"\n")
                    os._exit(0)
                finally:
                    os._exit(1)
        os.close(go)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
        paths = os.read(answers, 1 << 16).decode().splitlines()
        for end in (start, answers, answer):
            os.close(end)
        assert len(paths) == 8 and len(set(paths)) == 1 and Path(paths[0]).read_bytes() == BODY
        assert [entry for entry in server.log if entry[0] == "GET"] == [("GET", PATH, None)]
    record("Downloads", f"eight processes ask for {given} at once", "one download", "one GET, eight whole answers")


def killed_at(owner, name, call, action):
    """Run `action` in a process that gets SIGKILL at the call-th call of `owner.name`; return whether it did."""
    pid = os.fork()
    if pid == 0:
        calls, real = [], getattr(owner, name)

        def kill_or_call(*args, **kwargs):
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, kill_or_call)
        try:
            action()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(("when", "owner", "name", "call"), [
    ("in mid-body", http.tqdm, "update", 20), ("before the rename", http.os, "replace", 1),
])
def test_killed_in_a_download(when, owner, name, call, tmp_path, monkeypatch, record):
    with serve({PATH: BODY, "/x": BODY}) as server:
        monkeypatch.setenv("MINBERT_HUB", server.url)
        for path, fetch in ((PATH, lambda: pretrained_file("bert", ("vocab.txt",))),
                            ("/x", lambda: get_from_cache(f"{server.url}/x"))):
            assert killed_at(owner, name, call, fetch)
            assert len(parts := kept(tmp_path / "cache")) == 1 and parts[0].endswith(".part")
            assert Path(fetch()).read_bytes() == BODY
            assert any(where == path and asked for _, where, asked in server.log)
            for file in kept(tmp_path / "cache"):
                next((tmp_path / "cache").rglob(file)).unlink()
    record("Downloads", f"kill -9 {when} of a download, and the command again", "no entry before, a whole one after",
           "a partial file alone, then the whole file")


@pytest.mark.parametrize(("when", "owner", "name", "call"), [
    ("in the middle", downloads.shutil, "copyfileobj", 2), ("before the rename", http.os, "rename", 1),
])
def test_killed_while_unpacking(when, owner, name, call, tmp_path, record):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"in/{number}.txt", "x" * 1000)
    path = tmp_path / "a.zip"
    assert killed_at(owner, name, call, lambda: cached_path(path, extract_compressed_file=True))
    assert kept(tmp_path / "a.zip-extracting") and not (tmp_path / "a.zip-extracted").exists()
    folder = cached_path(path, extract_compressed_file=True)
    assert kept(Path(folder)) == ["0.txt", "1.txt", "2.txt"] and not (tmp_path / "a.zip-extracting").exists()
    record("Downloads", f"kill -9 while an archive is unpacked, {when}, and the command again", "all of its files",
           "all three files")
