"""A file server on 127.0.0.1 that can resume, redirect, refuse, break off and lie, for the tests of downloads."""

import hashlib
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from files import downloads
from files.http import OFFLINE_VARIABLES


@dataclass
class Reply:
    """An answer sent as it stands, whatever was asked.

    `wait` seconds pass before the body, of which the first `drip` bytes come one by one, 50 a second.
    """

    body: bytes = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    wait: float = 0
    drip: int = 0


class Handler(BaseHTTPRequestHandler):
    """Serve `server.files`: path -> bytes (the body), str (where it redirects to), int (the status of an error), Reply,
    or a list of these, one for each GET and the last for all that follow and for HEAD; "HEAD path" is of HEAD alone.

    As a proxy it is asked for whole addresses in place of paths.
    """

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.log.append((self.command, self.path, asked))
        server.seen.append(dict(self.headers))
        apart = server.files.get(f"HEAD {self.path}", None) if self.command == "HEAD" else None
        body = server.files.get(self.path, 404) if apart is None else apart
        if isinstance(body, list):
            body = body[-1] if len(body) == 1 or self.command == "HEAD" and apart is None else body.pop(0)
        if isinstance(body, int):
            return self.reply(body, {"Content-Length": "0"})
        if isinstance(body, str):
            return self.reply(302, {"Location": body, "Content-Length": "0"})
        if isinstance(body, Reply):
            return self.reply(body.status, body.headers, body.body, body.wait, body.drip)
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start >= len(body) > 0:
            return self.reply(416, {"Content-Length": "0"})
        headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        if server.etags:
            headers["ETag"] = etag(body)
        headers["Content-Length"] = str(len(body) - start)
        self.reply(206 if start else 200, headers, body[start : len(body) if server.cut is None else server.cut])

    def reply(self, status, headers, body=b"", wait=0, drip=0):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            time.sleep(wait)
            try:
                for byte in body[:drip]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.02)
                self.wfile.write(body[drip:])
            except ConnectionError:  # the client had enough
                pass

    def log_message(self, *args):
        pass


def quick(tmp_path, monkeypatch):
    """Put the cache under `tmp_path`, let downloads not sleep, and return the list of the pauses they made."""
    pauses = []
    monkeypatch.setattr(downloads, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("MINBERT_HUB", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", *OFFLINE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return pauses


def kept(folder):
    """Return the names of the files below a folder, without those of locks; empty if there is no folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def etag(body):
    """Return the ETag under which the server sends these bytes."""
    return f'"{hashlib.sha256(body).hexdigest()}"'


@contextmanager
def serve(files, ranges=True, etags=True, cut=None):
    """Yield a server of `files` with `.url`, `.log` [(method, path, Range)] and `.seen` [headers of the request].

    Bodies end early at byte `cut`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.ranges, server.etags, server.cut = files, ranges, etags, cut
    server.log, server.seen, server.url = [], [], f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
