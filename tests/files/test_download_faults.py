"""Downloads from a server that redirects, breaks off, lies about sizes and versions, or sends something else."""

import errno
import gzip
import hashlib
from pathlib import Path

import pytest
import requests

from files import downloads, http, pretrained
from files.downloads import get_from_cache
from files.errors import UserError
from files.pretrained import pretrained_file
from tests.helpers.faults import failing
from tests.helpers.file_server import Reply, etag, kept, quick, serve

BODY = bytes(range(256)) * 8000  # many chunks
WHOLE = {"Content-Length": str(len(BODY)), "ETag": etag(BODY)}
START = 22 << 16  # a whole number of chunks
REST = f"bytes={START}-"
CUT = Reply(BODY[:START], headers=WHOLE)
PATH = "/bert/resolve/main/vocab.txt"
PAGE = b"<!DOCTYPE html><html><body>Log in to the hotel's network</body></html>"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def pauses(tmp_path, monkeypatch):
    return quick(tmp_path, monkeypatch)


@pytest.fixture
def fetch(cache, monkeypatch):
    """fetch(answer, {path: answer of other addresses}) → the vocabulary of a hub that answers so, and the server."""
    def run(answer, others=(), name="bert", **options):
        path = PATH.replace("bert", name)
        with serve({path: answer, **dict(others)}, **options) as server:
            monkeypatch.setenv("MINBERT_HUB", server.url)
            try:
                return Path(pretrained_file(name, ("vocab.txt",))).read_bytes(), server
            except UserError as error:
                return str(error), server

    return run


def rest(body, start=START, tag=WHOLE["ETag"]):
    """Return the answer to a request for the bytes from `start` on."""
    return Reply(body, 206, {"Content-Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}", "ETag": tag})


GOOD = [  # given, the hub's answers, other addresses, the pauses, the GET requests: path and Range
    ("an absolute redirect", "HOST/cdn/x", {"/cdn/x": BODY}, [], [(PATH, None), ("/cdn/x", None)]),
    ("a relative redirect", "../../cdn/x", {"/bert/cdn/x": BODY}, [], [(PATH, None), ("/bert/cdn/x", None)]),
    ("HTTP 429 that says Retry-After: 7", [Reply(status=429, headers={"Retry-After": "7"}), BODY], {}, [7],
     [(PATH, None)] * 2),
    ("HTTP 503, 500, then the file", [503, 500, BODY], {}, [1, 2], [(PATH, None)] * 3),
    ("a connection cut in mid-body", [CUT, BODY], {}, [1], [(PATH, None), (PATH, REST)]),
    ("a cut, then a server that ignores Range", [CUT, Reply(BODY, headers=WHOLE)], {}, [1],
     [(PATH, None), (PATH, REST)]),
    ("a cut, then a wrong Content-Range", [CUT, rest(BODY[7:], start=7), BODY], {}, [1],
     [(PATH, None), (PATH, REST), (PATH, None)]),
    ("a cut, then another version of the file", [CUT, rest(b"?" * len(BODY[START:]), tag='"new"'), BODY], {}, [1],
     [(PATH, None), (PATH, REST), (PATH, None)]),
    ("a cut, then more bytes than the file has", [CUT, rest(BODY[START:] + b"more"), BODY], {}, [1, 2],
     [(PATH, None), (PATH, REST), (PATH, None)]),
    ("HTTP 503 to HEAD, then the ETag", BODY, {f"HEAD {PATH}": [503, BODY]}, [1], [(PATH, None)]),
    ("HTTP 429 to HEAD that says Retry-After: 7", BODY,
     {f"HEAD {PATH}": [Reply(status=429, headers={"Retry-After": "7"}), BODY]}, [7], [(PATH, None)]),
    ("HTTP 501 to HEAD, which the server does not know", BODY, {f"HEAD {PATH}": 501}, [], [(PATH, None)]),
    ("a body that is compressed unasked", Reply(gzip.compress(BODY), headers={"Content-Encoding": "gzip"}), {}, [],
     [(PATH, None)]),
    ("the answer comes too late", [Reply(BODY, headers=WHOLE, wait=0.4), BODY], {}, [1], [(PATH, None)] * 2),
]


@pytest.mark.parametrize(("given", "answer", "others", "waits", "gets"), GOOD, ids=[case[0] for case in GOOD])
def test_what_mends_itself(given, answer, others, waits, gets, fetch, cache, pauses, monkeypatch, record):
    monkeypatch.setattr(http, "TIMEOUT", 0.2)
    if isinstance(answer, str) and answer.startswith("HOST"):
        with serve(others) as other:  # another port: another host as far as downloads are concerned
            got, server = fetch(answer.replace("HOST", other.url))
            log = [*server.log, *other.log]
    else:
        got, server = fetch([*answer] if isinstance(answer, list) else answer, others)
        log = server.log
    assert got == BODY and kept(cache) == ["vocab.txt"] and pauses == waits
    assert [(path, asked) for method, path, asked in log if method == "GET"] == gets
    resumed = ", taken up where it stopped" if server.log[-1][2] and "ignores" not in given else ""
    record("Downloads", given, "the whole file", f"the whole file after {len(gets)} requests{resumed}")


def test_a_body_that_drips(fetch, pauses, monkeypatch, record):
    monkeypatch.setattr(http, "LEAST", (0.2, 1000))
    got, server = fetch([Reply(BODY, headers=WHOLE, drip=100), BODY])
    assert got == BODY and pauses == [1] and server.log[-1][2].startswith("bytes=")
    record("Downloads", "a body of which a byte comes now and then", "broken off, taken up where it stopped",
           "the whole file after 2 requests; less than 60 kB in a minute is too little")


BAD = [  # given, the answer, what the message says, waits
    ("a redirect to itself", PATH, "TooManyRedirects", []),
    ("a redirect to file:///etc/passwd", "file:///etc/passwd", "InvalidSchema", []),
    ("HTTP 503 again and again", 503, "HTTP 503", [1, 2, 4, 8]),
    ("HTTP 429 that says Retry-After: 9999", Reply(status=429, headers={"Retry-After": "9999"}), "HTTP 429", []),
    ("a connection cut at once, again and again", Reply(b"", headers=WHOLE), "vocab.txt", [1, 2, 4, 8]),
    ("HTML by its Content-Type", Reply(b"hello", headers={"Content-Type": "text/html; charset=utf-8"}),
     "a web page came in place of the file", []),
    ("HTML by its first bytes", Reply(b"\n" + PAGE), "a web page came in place of the file", []),
    ("part of a file that was asked for whole", Reply(b"x" * 9, 206, {"Content-Range": "bytes 0-8/100"}),
     "HTTP 206, which is no file", []),
    ("a Content-Length that is no number", Reply(PAGE, headers={"Content-Length": "many"}), "a web page", []),
]


@pytest.mark.parametrize(("given", "answer", "words", "waits"), BAD, ids=[case[0] for case in BAD])
def test_what_does_not(given, answer, words, waits, fetch, cache, pauses, record):
    message, _ = fetch(answer)
    assert words in message and "Three ways on" in message and "\n" not in message
    assert pauses == waits and kept(cache) == []
    record("Downloads", given, "refused, nothing cached", message.partition(". Three")[0])


def test_too_short_for_good_leaves_a_part_and_no_entry(fetch, cache, pauses, record):
    message, _ = fetch(BODY, cut=START)
    [part] = kept(cache)
    assert part.endswith(".part") and len(pauses) == 4 and "Three ways on" in message
    got, server = fetch(BODY)
    assert got == BODY and kept(cache) == ["vocab.txt"] and server.log[-1] == ("GET", PATH, REST)
    record("Downloads", "a body that is too short at every try; the command again", "refused, then taken up",
           f"{message.partition('. Three')[0]}; then asked for from there on")


def test_digest_of_the_hub(fetch, cache, record):
    """The hub's answer names the SHA-256 of a large file; the storage that it redirects to has an ETag of its own."""
    right = {"X-Linked-Etag": f'"{hashlib.sha256(BODY).hexdigest()}"', "ETag": '"x"', "Location": "/cdn"}
    got, _ = fetch(Reply(status=302, headers=right), {"/cdn": BODY})
    assert got == BODY
    (cache / "bert" / "vocab.txt").unlink()
    message, _ = fetch(Reply(status=302, headers=right), {"/cdn": BODY[::-1]})
    assert "not the published file (SHA-256" in message and kept(cache) == []
    record("Downloads", "content of another SHA-256 than the hub's X-Linked-Etag", "refused, nothing cached",
           message.partition(". Three")[0])
    got, _ = fetch(Reply(BODY, headers={"ETag": f'"{"0" * 64}"'}))  # 64 digits of who knows which hash
    assert got == BODY


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased"])
def test_pinned_digest(name, fetch, cache, monkeypatch, record):
    message, _ = fetch(BODY, name=name)
    assert "should be 07eced375cec" in message and kept(cache) == []
    record("Downloads", f"another vocab.txt under the id {name}", "refused: its SHA-256 is pinned",
           message.partition(". Three")[0])
    monkeypatch.setitem(pretrained.PINNED_SHA256["bert-base-uncased"], "vocab.txt", hashlib.sha256(BODY).hexdigest())
    assert fetch(BODY, name=name)[0] == BODY


def test_a_part_of_other_content_is_not_trusted(fetch, cache, monkeypatch, pauses):
    """A digest that fails after a part was taken up: once more, from the start."""
    digests = {"bert-base-uncased": {"vocab.txt": hashlib.sha256(BODY).hexdigest()}}
    monkeypatch.setattr(pretrained, "PINNED_SHA256", digests)
    (cache / "bert-base-uncased").mkdir(parents=True)
    name = f"vocab.txt.{downloads.url_to_filename(etag(BODY))[:8]}.part"
    (cache / "bert-base-uncased" / name).write_bytes(b"?" * 1000)
    assert fetch(BODY, name="bert-base-uncased")[0] == BODY and pauses == [1]


def test_disk_full(fetch, cache, record):
    for what, error, words in (("write", errno.ENOSPC, "No space left"), ("fsync", errno.EIO, "Input/output error")):
        with failing(what, error, "*vocab.txt*.part"):
            message, _ = fetch(BODY)
        assert words in message and "make room" in message and kept(cache) == []
    assert fetch(BODY)[0] == BODY
    with failing("write", errno.ENOSPC, "*.part"), serve({"/x": BODY}) as server:
        with pytest.raises(UserError, match="No space left") as error:
            get_from_cache(f"{server.url}/x")
    record("Downloads", "the disk is full", "an error with a way on, no partial file left", error.value,
           folder=cache.parent)


@pytest.mark.parametrize(("what", "match"), [("makedirs", "*/cache"), ("open", "*/vocab.txt.lock"),
                                             ("open", "*.part"), ("replace", "*/vocab.txt")])
def test_cache_that_cannot_be_written(what, match, fetch, cache, record):
    with failing(what, errno.EACCES, match):
        message, _ = fetch(BODY)
    assert "Permission denied" in message and "MINBERT_CACHE" in message and "vocab.txt" not in kept(cache)
    record("Downloads", f"no permission for {what} in the cache", "an error that names the file and a way on", message,
           folder=cache.parent)


def test_the_server_falls_ill_while_an_older_copy_is_there(pauses, capsys, record):
    files = {"/x.csv": b"one"}
    with serve(files) as server:
        first = get_from_cache(f"{server.url}/x.csv")
        files["/x.csv"] = Reply(PAGE)
        assert get_from_cache(f"{server.url}/x.csv") == first
        said = capsys.readouterr().err
        assert "web page" in said and "the newest cached copy serves" in said
        record("Downloads", "HTML where an older version is cached", "the cached copy, and a line that says so", said)
        files["/page.html"] = Reply(PAGE)
        assert Path(get_from_cache(f"{server.url}/page.html")).read_bytes() == PAGE  # asked for as such


def test_network_that_is_not_there_is_tried_once(fetch, pauses, record, monkeypatch):
    monkeypatch.setenv("MINBERT_HUB", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Connection refused") as error:
        pretrained_file("bert", ("vocab.txt",))
    assert pauses == []
    record("Downloads", "no network", "an error at once that names three ways on", error.value)
    with pytest.raises(requests.RequestException, match="InvalidURL"):
        http.http_get("http://127.0.0.1:9999999/x", None)
