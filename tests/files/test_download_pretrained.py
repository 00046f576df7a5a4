"""pretrained_file against a stand-in hub: whole or not at all, once, taken up where it broke off."""

import os
import re
from pathlib import Path

import pytest

from files.errors import UserError
from files.pretrained import pretrained_file
from tests.helpers.file_server import kept, quick, serve

BODY = bytes(range(256)) * 8000  # many chunks
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    quick(tmp_path, monkeypatch)
    return tmp_path / "cache"


def hub(monkeypatch, server_url):
    monkeypatch.setenv("MINBERT_HUB", server_url)


def test_short_body_is_an_error_and_is_taken_up_later(cache, monkeypatch):
    with serve({"/bert/resolve/main/vocab.txt": BODY}, cut=1_500_000) as server:
        hub(monkeypatch, server.url)
        with pytest.raises(UserError, match="Three ways on"):
            pretrained_file("bert", ("vocab.txt",))
        assert not (cache / "bert" / "vocab.txt").exists()
        server.cut, server.log = None, []
        path = pretrained_file("bert", ("vocab.txt",))
        assert Path(path).read_bytes() == BODY and kept(cache / "bert") == ["vocab.txt"]
        assert re.fullmatch(r"bytes=[1-9]\d{6}-", server.log[-1][2])


@pytest.mark.parametrize("etags", [True, False])
def test_part_of_another_version_is_not_taken_up(cache, monkeypatch, etags):
    files = {"/bert/resolve/main/vocab.txt": BODY[::-1]}
    with serve(files, cut=1_500_000, etags=etags) as server:
        hub(monkeypatch, server.url)
        with pytest.raises(UserError):
            pretrained_file("bert", ("vocab.txt",))
        files["/bert/resolve/main/vocab.txt"], server.cut = BODY, None
        assert Path(pretrained_file("bert", ("vocab.txt",))).read_bytes() == BODY


def test_hub_falls_through_to_what_it_has_and_asks_once(cache, monkeypatch):
    with serve({"/org/bert/resolve/main/pytorch_model.bin": BODY}) as server:
        hub(monkeypatch, server.url)
        path = pretrained_file("org/bert", WEIGHTS)
        assert path == str(cache / "org--bert" / "pytorch_model.bin") and Path(path).read_bytes() == BODY
        with pytest.raises(UserError, match=r"model.safetensors \(HTTP 404\)"):
            pretrained_file("org/other", WEIGHTS)
    assert pretrained_file("org/bert", WEIGHTS) == path  # the server is gone
    with pytest.raises(UserError):
        pretrained_file("org/bert", WEIGHTS, revision="v1")


def test_redirect_to_a_storage_that_refuses_head(cache):
    files = {"/model.safetensors": "/again", "/cdn": BODY, "HEAD /cdn": 403}
    with serve(files) as server:
        files["/again"] = f"{server.url.replace('127.0.0.1', 'localhost')}/cdn"
        path = pretrained_file(f"{server.url}/model.safetensors", WEIGHTS)
        assert os.path.basename(path) == "model.safetensors" and Path(path).read_bytes() == BODY
        assert ("HEAD", "/cdn", None) not in server.log


def test_offline_says_the_three_ways_on(cache, monkeypatch):
    hub(monkeypatch, NOWHERE)
    with pytest.raises(UserError) as error:
        pretrained_file("bert-base-uncased", WEIGHTS)
    text = str(error.value)
    assert "\n" not in text and "--pretrained DIR" in text and "--pretrained minilm" in text
    assert str(cache / "bert-base-uncased") in text and f"{NOWHERE}/bert-base-uncased/resolve/main/" in text
    (cache / "bert-base-uncased" / "pytorch_model.bin").write_bytes(b"by hand")
    assert pretrained_file("bert-base-uncased", WEIGHTS) == str(cache / "bert-base-uncased" / "pytorch_model.bin")


@pytest.mark.parametrize("given, near", [("bert-base-uncsed", "bert-base-uncased"), ("mini-lm", "minilm"),
                                         ("og/mine", "org/mine")])
def test_nearest_name(given, near, cache, monkeypatch, record):
    (cache / "org--mine").mkdir(parents=True)
    (cache / "org--mine" / "config.json").write_text("{}")
    with serve({}) as server:
        for hub_url in (server.url, NOWHERE):
            hub(monkeypatch, hub_url)
            with pytest.raises(UserError, match=f"^'{given}' .did you mean {near}\\?. is no file or folder") as error:
                pretrained_file(given, WEIGHTS)
    record("Downloads", f"--pretrained {given}, which is misspelt", "an error with the nearest name that is known",
           error.value, folder=cache.parent)


def test_cached_file_of_another_digest(cache, capsys, record):
    (cache / "bert-base-uncased").mkdir(parents=True)
    (cache / "bert-base-uncased" / "vocab.txt").write_bytes(b"by hand")
    pretrained_file("bert-base-uncased", ("vocab.txt",))
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and "vocab.txt is not the published file of bert-base-uncased" in said
    record("Downloads", "another vocab.txt of bert-base-uncased put into the cache by hand", "used, with a warning",
           said, folder=cache)


def test_parts_of_other_versions_go_once_the_file_is_there(cache, monkeypatch):
    (cache / "bert").mkdir(parents=True)
    left = [cache / "bert" / f"vocab.txt.{'0' * 8}.part", cache / "bert" / f"vocab.txt.{'0' * 64}.{'0' * 8}.part"]
    for part in left:
        part.write_bytes(b"old")
    with serve({"/bert/resolve/main/vocab.txt": BODY}) as server:
        hub(monkeypatch, server.url)
        pretrained_file("bert", ("vocab.txt",))
    assert kept(cache) == ["vocab.txt", left[1].name]  # the latter is another file's


def test_a_tilde_is_for_the_shell(tmp_path, monkeypatch):
    """No other flag expands it: what --pretrained read would not be what the checks of the outputs see."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vocab.txt").write_bytes(b"x")
    with pytest.raises(UserError, match="no such file or folder"):
        pretrained_file("~/vocab.txt", WEIGHTS)


def test_local_files_only_asks_nobody(monkeypatch):
    with serve({"/bert/resolve/main/vocab.txt": BODY}) as server:
        hub(monkeypatch, server.url)
        with pytest.raises(UserError):
            pretrained_file("bert", ("vocab.txt",), local_files_only=True)
        assert server.log == []
