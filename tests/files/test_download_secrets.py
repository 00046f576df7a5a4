"""Where downloads go and what they say: tokens, signed addresses, proxies, offline."""

import io
import socket
import traceback
from pathlib import Path

import pytest
import requests
from tqdm import tqdm
from urllib3 import HTTPResponse

from files import http
from files.downloads import cached_path, get_from_cache
from files.errors import UserError
from files.http import OFFLINE_VARIABLES
from files.pretrained import pretrained_file
from tests.helpers.file_server import Reply, quick, serve

SECRET = "hf_abcdef"
PATH = "/bert/resolve/main/vocab.txt"


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    quick(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}\n")  # as `export HF_TOKEN=$(...)` may leave it


def tokens(server):
    """Return the Authorization headers that reached a server, one for each request."""
    return [headers.get("Authorization") for headers in server.seen]


@pytest.mark.parametrize("token", [True, SECRET])
def test_token_stays_with_its_host(token, monkeypatch, capsys, record):
    files = {"/b/resolve/main/vocab.txt": PATH}
    with serve({"/cdn": b"[PAD]"}) as other, serve(files) as hub:
        files[PATH] = f"{other.url}/cdn"
        monkeypatch.setenv("MINBERT_HUB", hub.url)
        for name in ("bert", "b"):
            assert Path(pretrained_file(name, ("vocab.txt",), use_auth_token=token)).read_bytes() == b"[PAD]"
        assert set(tokens(hub)) == {f"Bearer {SECRET}"} and len(tokens(hub)) == 6
        assert tokens(other) == [None] * 2
        with pytest.raises(UserError) as error:
            pretrained_file("none", ("vocab.txt",), use_auth_token=token)
    assert SECRET not in f"{error.value}{capsys.readouterr()}"
    record("Downloads", "a token, and a redirect to another host", "the token reaches the hub alone",
           "the hub got it with all of 6 requests, the other host with none of 2")


def test_token_of_the_environment_is_for_the_hub(monkeypatch, record):
    with serve({"/x": b"x"}) as hub, serve({"/model.txt": b"x"}) as other:
        monkeypatch.setenv("MINBERT_HUB", hub.url)
        get_from_cache(f"{hub.url}/x", use_auth_token=True)
        pretrained_file(f"{other.url}/model.txt", ("vocab.txt",), use_auth_token=True)
        assert set(tokens(hub)) == {f"Bearer {SECRET}"} and set(tokens(other)) == {None}
        hub.seen.clear()
        get_from_cache(f"{hub.url}/x", force_download=True)  # not asked for
        assert set(tokens(hub)) == {None}
    record("Downloads", "HF_TOKEN, and the address of a file on another host", "no token goes there", "none")


@pytest.mark.parametrize(("target", "kept"), [
    ("https://hub.test/cdn", True), ("http://hub.test/cdn", False), ("https://hub.test:444/cdn", False),
    ("https://other.test/cdn", False),
])
def test_token_and_redirects_within_https(target, kept, monkeypatch, record):
    """A transport that answers in place of the network, below everything that requests does with redirects."""
    seen = []

    def send(adapter, request, **options):
        seen.append((request.url, request.headers.get("Authorization")))
        response = requests.Response()
        response.request, response.url, response.status_code = request, request.url, 200
        if request.url == "https://hub.test" + PATH:
            response.status_code, response.headers["Location"] = 302, target
        response.raw = HTTPResponse(io.BytesIO(b"[PAD]"), preload_content=False)
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    monkeypatch.setenv("MINBERT_HUB", "https://hub.test")
    pretrained_file("bert", ("vocab.txt",), use_auth_token=True)
    assert {token for url, token in seen if url == target} == {f"Bearer {SECRET}" if kept else None}
    if target.startswith("http://"):
        record("Downloads", "a token, and a redirect from https to http on one host", "no token goes there", "none")


@pytest.mark.parametrize("answer", [404, 503, Reply(b"<html>"), Reply(b"x", headers={"Content-Length": "9"}),
                                    "ftp://user:pass@127.0.0.1/?sig=xyz", "http://[::1"])
def test_secrets_of_an_address_are_not_shown(answer, capsys, record):
    with serve({"/x.bin?sig=xyz": answer}) as server:
        url = server.url.replace("//", "//user:pass@") + "/x.bin?sig=xyz"
        for call in (get_from_cache, lambda url: pretrained_file(url, ("x",))):
            with pytest.raises(UserError) as error:
                call(url)
            said = f"{''.join(traceback.format_exception(error.value))} {capsys.readouterr()}"  # as --debug shows it
            assert f"{server.url}/x.bin" in said and "pass" not in said and "sig" not in said and "xyz" not in said
    record("Downloads", "an address with a password and a signed query that fails", "neither is shown", error.value)


def test_progress_bar_names_the_file_alone(monkeypatch, capsys):
    monkeypatch.setattr(http, "tqdm", lambda **options: tqdm(**{**options, "disable": False}))
    with serve({"/x.bin?sig=xyz": b"x"}) as server:
        get_from_cache(server.url.replace("//", "//user:pass@") + "/x.bin?sig=xyz")
    said = capsys.readouterr().err
    assert "x.bin" in said and "sig" not in said and "pass" not in said


def test_invalid_token_is_not_shown():
    with serve({"/x": b"x"}) as server, pytest.raises(UserError, match="InvalidHeader") as error:
        get_from_cache(f"{server.url}/x", use_auth_token="ab\ncd")
    assert "cd" not in str(error.value).replace("cannot be downloaded", "")


def test_proxies(monkeypatch, tmp_path, record):
    """The proxy alone knows the host; it serves whole addresses."""
    with serve({f"http://hub.invalid{PATH}": b"[PAD]", "http://hub.invalid/x": b"x"}) as proxy:
        monkeypatch.setenv("MINBERT_HUB", "http://hub.invalid")
        argument = {"http": proxy.url}
        assert Path(pretrained_file("bert", ("vocab.txt",), proxies=argument)).read_bytes() == b"[PAD]"
        assert Path(get_from_cache("http://hub.invalid/x", proxies=argument)).read_bytes() == b"x"
        asked = len(proxy.log)
        monkeypatch.setenv("http_proxy", proxy.url)
        pretrained_file("bert", ("vocab.txt",), cache_dir=tmp_path / "new")
        get_from_cache("http://hub.invalid/x", cache_dir=tmp_path / "new")
        assert len(proxy.log) == 2 * asked
    with pytest.raises(UserError, match="ProxyError"):
        get_from_cache("http://hub.invalid/x", proxies={"http": "http://127.0.0.1:9"}, force_download=True)
    record("Downloads", "a proxy, as proxies= or in the environment", "all requests go through it",
           f"{2 * asked} requests reached the proxy for a host that does not exist")


@pytest.mark.parametrize("how", ["local_files_only", *OFFLINE_VARIABLES])
def test_offline_touches_no_network(how, monkeypatch, record):
    with serve({PATH: b"[PAD]", "/x": b"x"}) as server:
        monkeypatch.setenv("MINBERT_HUB", server.url)
        file, copy = pretrained_file("bert", ("vocab.txt",)), get_from_cache(f"{server.url}/x")
        server.log.clear()
        options = {"local_files_only": True} if how == "local_files_only" else {}
        if not options:
            monkeypatch.setenv(how, "1")
            with pytest.raises(requests.RequestException, match=how):
                http.http_get(f"{server.url}/x", None)

        def touched(*args, **kwargs):
            raise AssertionError("a socket was opened")

        monkeypatch.setattr(socket, "socket", touched)
        monkeypatch.setattr(socket, "getaddrinfo", touched)
        assert pretrained_file("bert", ("vocab.txt",), **options) == file
        assert get_from_cache(f"{server.url}/x", **options) == cached_path(f"{server.url}/x", **options) == copy
        for call in (lambda: pretrained_file("other", ("vocab.txt",), **options),
                     lambda: pretrained_file("bert", ("vocab.txt",), force_download=True, **options),
                     lambda: get_from_cache(f"{server.url}/y", **options)):
            with pytest.raises(UserError, match="only local files" if options else how) as error:
                call()
        monkeypatch.undo()
        assert server.log == []
    record("Downloads", f"{how} and an empty cache", "an error; no socket is opened", error.value)
