"""A file server on 127.0.0.1 that can resume, redirect, refuse and break off, for the tests of downloads."""

import hashlib
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Serve `server.files`: path -> bytes (the body), str (where it redirects to) or int (the status of an error)."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.log.append((self.command, self.path, asked))
        body = 403 if self.command == "HEAD" and self.path in server.no_head else server.files.get(self.path, 404)
        if isinstance(body, int):
            self.send_response(body)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if isinstance(body, str):
            self.send_response(302)
            self.send_header("Location", body)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.etags:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : len(body) if server.cut is None else server.cut])

    def log_message(self, *args):
        pass


@contextmanager
def serve(files, ranges=True, etags=True, cut=None, no_head=()):
    """Yield a server of `files` with `.url` and `.log` [(method, path, Range)]; bodies end early at byte `cut`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.ranges, server.etags, server.cut, server.no_head = files, ranges, etags, cut, no_head
    server.log, server.url = [], f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
