"""http_get, get_from_cache and cached_path against a real server on this machine."""

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import requests

from files import downloads, http
from files.downloads import cached_path, get_from_cache
from files.errors import UserError
from files.http import http_get
from tests.helpers.file_server import Reply, quick, serve

BODY = bytes(range(256)) * 8000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    quick(tmp_path, monkeypatch)
    return tmp_path / "cache"


def test_names_and_addresses(monkeypatch):
    monkeypatch.setenv("MINBERT_HUB", "https://hub.example/")
    assert http.hf_bucket_url("bert-base-uncased", "vocab.txt") == (
        "https://hub.example/bert-base-uncased/resolve/main/vocab.txt"
    )
    assert http.hf_bucket_url("a/b", "c", subfolder="d", revision="v1", mirror="http://m") == (
        "http://m/a/b/resolve/v1/d/c"
    )
    monkeypatch.delenv("MINBERT_HUB")
    assert http.hf_bucket_url("a/b", "c").startswith("https://huggingface.co/a/b/")
    assert http.is_remote_url("https://x/y")
    assert not http.is_remote_url("C:/x") and not http.is_remote_url("x/y")
    assert re.fullmatch("[0-9a-f]{64}", downloads.url_to_filename("u"))
    name = downloads.url_to_filename("u")
    assert re.fullmatch(re.escape(name) + r"\.[0-9a-f]{64}", downloads.url_to_filename("u", "e"))


@pytest.mark.parametrize("ranges", [True, False])
def test_http_get_resumes_or_starts_again(ranges):
    with serve({"/x": BODY}, ranges=ranges) as server:
        file = io.BytesIO(BODY[:1000] if ranges else b"?" * 1000)
        http_get(f"{server.url}/x", file, resume_size=1000)
        assert file.getvalue() == BODY and server.log == [("GET", "/x", "bytes=1000-")]


def test_http_get_after_more_than_there_is():
    with serve({"/x": BODY}) as server:
        file = io.BytesIO(BODY + b"more")
        http_get(f"{server.url}/x", file, resume_size=len(file.getvalue()))
        assert file.getvalue() == BODY


def test_get_from_cache_follows_versions_and_survives_offline(cache):
    files = {"/x": b"one"}
    with serve(files) as server:
        url = f"{server.url}/x"
        first = get_from_cache(url)
        assert get_from_cache(url) == first and Path(first).read_bytes() == b"one"
        os.utime(first, (1, 1))
        files["/x"] = b"two"
        second = get_from_cache(url, cache_dir=str(cache))
        assert second != first and Path(second).read_bytes() == b"two"
        with pytest.raises(UserError, match="404"):
            get_from_cache(f"{server.url}/missing")
        files["/x"] = 503
        assert get_from_cache(url) == second
        files["HEAD /x"] = 429
        assert get_from_cache(url) == second
    assert get_from_cache(url) == second == cached_path(url, local_files_only=True)
    with pytest.raises(UserError):
        get_from_cache(url, force_download=True)


def test_a_version_that_the_server_is_too_busy_to_tell_is_asked_for_again():
    with serve({"/x": b"one", "HEAD /x": [503, b"one"]}) as server:
        path = get_from_cache(f"{server.url}/x")
        assert get_from_cache(f"{server.url}/x") == path and len(os.path.basename(path)) == 129
        assert [method for method, _, _ in server.log] == ["HEAD", "HEAD", "HEAD", "GET", "HEAD"]


def test_http_get_closes_an_answer_before_it_asks_again(monkeypatch):
    answers, get = [], requests.get
    monkeypatch.setattr(requests, "get", lambda *args, **options: (
        pytest.fail("the first is open") if any(not answer.raw.closed for answer in answers)
        else answers.append(get(*args, **options)) or answers[-1]))
    with serve({"/x": [Reply(BODY, 206, {"Content-Length": str(len(BODY))}), BODY]}) as server:
        file = io.BytesIO(BODY[:1000])
        http_get(f"{server.url}/x", file, resume_size=1000)
    assert file.getvalue() == BODY and len(answers) == 2


def test_cached_path_of_files_and_archives(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    assert cached_path(tmp_path / "x.txt", extract_compressed_file=True) == str(tmp_path / "x.txt")
    with pytest.raises(UserError, match="no such file"):
        cached_path(tmp_path / "y.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "x.txt", "in/x.txt")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(tmp_path / "x.txt", "in/x.txt")
    for name in ("a.zip", "a.tgz"):
        folder = cached_path(tmp_path / name, extract_compressed_file=True)
        assert (Path(folder) / "in" / "x.txt").read_text() == "x"
        (Path(folder) / "in" / "x.txt").write_text("y")
        cached_path(tmp_path / name, extract_compressed_file=True)
        assert (Path(folder) / "in" / "x.txt").read_text() == "y"
        cached_path(tmp_path / name, extract_compressed_file=True, force_extract=True)
        assert (Path(folder) / "in" / "x.txt").read_text() == "x"


def test_errors_of_the_server_are_requests_errors():
    with serve({"/x": BODY}, cut=10) as server:
        with pytest.raises(requests.RequestException):
            http_get(f"{server.url}/x", io.BytesIO())
        with pytest.raises(requests.HTTPError):
            http_get(f"{server.url}/y", io.BytesIO())
