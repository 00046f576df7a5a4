"""One request: where to, and whether the answer is the file."""

import os
import re
import time
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import requests
from requests.exceptions import ChunkedEncodingError as BrokenBody
from tqdm import tqdm
from urllib3.exceptions import HTTPError as TransportError
from urllib3.exceptions import NewConnectionError

TIMEOUT = 10, 30  # seconds without a connection, and without an answer or a byte
LEAST = 60, 60_000  # seconds, and the bytes of a body that must come in that time
OFFLINE_VARIABLES = ("MINBERT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Refused(requests.RequestException):
    """What waiting does not mend: no network, offline by choice, a page in place of a file, another digest."""


def is_remote_url(url_or_filename) -> bool:
    """Tell whether this is an http(s) address."""
    return re.match("https?://", str(url_or_filename), re.IGNORECASE) is not None


def hf_bucket_url(model_id, filename, subfolder=None, revision=None, mirror=None) -> str:
    """Return the address of a model's file on `mirror`, else $MINBERT_HUB, else the Hugging Face hub."""
    hub = (mirror or os.environ.get("MINBERT_HUB") or "https://huggingface.co").rstrip("/")
    filename = f"{subfolder}/{filename}" if subfolder else filename
    return f"{hub}/{model_id}/resolve/{revision or 'main'}/{filename}"


def shown_url(url) -> str:
    """Return the address as messages may show it: the user, the password and the query are or hold secrets."""
    text = re.sub(r"^(\w+://)[^/?#]*@", r"\1", str(url)).partition("?")[0].partition("#")[0]
    return "".join(character if character.isprintable() else "?" for character in text)


def origin(url):
    """Return (scheme, host, port), which a token does not leave; raise ValueError for no valid address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def check_online(local_files_only=False):
    """Raise Refused with `local_files_only`, and if a variable of the environment forbids to use the network."""
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Refused(f"{name} is set")
    if local_files_only:
        raise Refused("only local files were asked for")


@contextmanager
def own_words(url):
    """Replace the messages of requests' errors, which quote addresses and headers with the secrets in them."""
    try:
        yield
    except (requests.RequestException, ValueError) as error:  # ValueError: addresses that urllib3 cannot parse
        kind = type(error) if isinstance(error, requests.RequestException) else requests.exceptions.InvalidURL
        response, cause = getattr(error, "response", None), error
        while cause.__context__ is not None:
            if isinstance(cause, NewConnectionError):  # no such host, or nobody listens there
                kind = Refused
            cause = cause.__context__
        reason = f"HTTP {response.status_code}" if isinstance(error, requests.HTTPError) else type(error).__name__
        if isinstance(cause, OSError) and cause.strerror:
            reason += f", {cause.strerror}"
        raise kind(f"{shown_url(url)}: {reason}", response=response) from None


def is_passing(status):
    """Tell whether an HTTP status is of a trouble that waiting may mend; 501 is of a server that knows no HEAD."""
    return status in (408, 429) or status >= 500 and status != 501


def _strong_etag(response) -> str | None:
    """Return what names the content of a response; the hub's X-Linked-Etag is that of the storage it redirects to."""
    etag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag")
    return None if etag is None or etag.startswith("W/") else etag


def version_of(url, timeout=None, **request):
    """Ask for the ETag of `url` and the SHA-256 of its content; None for what the server does not say.

    Redirects are followed within the origin only: the storage behind a hub signs its links for GET alone.
    """
    check_online()
    with own_words(url):
        for _ in range(10):
            head = requests.head(url, timeout=timeout or TIMEOUT, allow_redirects=False, **request)
            target = urljoin(url, head.headers.get("Location", ""))
            if _strong_etag(head) or not head.is_redirect or origin(target) != origin(url):
                break
            url = target
        if is_passing(head.status_code):
            head.raise_for_status()
    # A plain ETag of 64 digits may be any other hash; the hub's for large files is the SHA-256.
    digest = re.fullmatch('"?([0-9a-f]{64})"?', head.headers.get("X-Linked-Etag", ""))
    return (_strong_etag(head), digest and digest[1]) if head.ok else (None, None)


def http_get(url, temp_file, proxies=None, resume_size=0, headers=None, etag=None):
    """Write the body of `url` to the open binary file `temp_file`, from byte `resume_size` on if the server can.

    With `etag`, bytes are added to earlier ones only if they are of that version. A token among `headers` does not
    follow a redirect to another origin (requests sees to that). Raises requests.RequestException if the server is out
    of reach, refuses, sends less or more than it announced, or a web page where `url` does not end in .html.
    """
    check_online()
    asked = {"Accept-Encoding": "identity", **(headers or {})}
    if resume_size:
        asked["Range"] = f"bytes={resume_size}-"
    with own_words(url):
        response = requests.get(url, stream=True, proxies=proxies, headers=asked, timeout=TIMEOUT)
    with response:
        whole = _resumed(response, etag, resume_size)
        from_there = whole is not None
        if resume_size and not from_there and response.status_code in (206, 416):  # no such bytes: all of it, then
            response.close()
            return http_get(url, temp_file, proxies=proxies, headers=headers)
        with own_words(url):
            response.raise_for_status()
        if response.status_code != (206 if from_there else 200):
            raise Refused(f"{shown_url(url)}: HTTP {response.status_code}, which is no file")
        length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""))
        total = whole if from_there else int(length[0]) if length else None
        _refuse_page(url, response.headers.get("Content-Type", ""))
        temp_file.seek(resume_size if from_there else 0)  # a server that ignores Range sends the whole body
        temp_file.truncate()
        with tqdm(
            desc=os.path.basename(shown_url(url)), initial=temp_file.tell(), total=total,
            unit="B", unit_scale=True, disable=None,
        ) as bar:
            for chunk in _chunks(response, url):
                if temp_file.tell() == 0:
                    _refuse_page(url, "", chunk)
                temp_file.write(chunk)
                bar.update(len(chunk))
        arrived = temp_file.tell()
        if total not in (None, arrived) and "Content-Encoding" not in response.headers:
            if arrived > total:
                temp_file.truncate(0)  # who knows which bytes are the right ones
            raise requests.ConnectionError(f"{shown_url(url)}: {arrived} of {total} bytes arrived")


def _resumed(response, etag, resume_size):
    """Return the size of the whole file if a response is the rest of it from byte `resume_size` on, else None."""
    part = re.match(r"bytes (\d{1,18})-\d+/(\d{1,18})$", response.headers.get("Content-Range", ""))
    version = next(filter(None, map(_strong_etag, [*response.history, response])), None)
    from_there = response.status_code == 206 and part is not None and int(part[1]) == resume_size > 0
    from_there = from_there and "Content-Encoding" not in response.headers and etag in (None, version)
    return int(part[2]) if from_there else None


def _chunks(response, url):
    """Yield the body as it arrives; raise requests.RequestException if it breaks off, or comes at less than LEAST."""
    (seconds, least), arrived = LEAST, 0
    due = time.monotonic() + seconds
    with own_words(url):
        try:
            while chunk := response.raw.read1(1 << 16, decode_content=True):
                yield chunk
                arrived += len(chunk)
                if time.monotonic() > due:
                    if arrived < least:
                        raise requests.Timeout(f"{arrived} bytes in {seconds} s")
                    due, arrived = time.monotonic() + seconds, 0
        except TransportError as error:
            raise BrokenBody(error) from error


def _refuse_page(url, content_type, start=b""):
    """Raise Refused for HTML, which hotel networks and proxies send in place of a file, unless `url` asks for it."""
    page = content_type.lower().startswith("text/html") or re.match(rb"\s*<(!doctype html|html)", start, re.IGNORECASE)
    if page and not shown_url(url).lower().endswith((".html", ".htm")):
        raise Refused(f"{shown_url(url)}: a web page came in place of the file; does this network ask for a log-in?")
