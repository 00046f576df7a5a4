"""Downloads and their cache: tried again, one process at a time, resumed, checked, whole or not at all."""

import glob
import hashlib
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
from pathlib import Path

import requests
from filelock import FileLock
from requests.exceptions import ChunkedEncodingError as BrokenBody
from requests.exceptions import SSLError

from files.errors import UserError
from files.http import (
    Refused,
    check_online,
    hf_bucket_url,
    http_get,
    is_passing,
    is_remote_url,
    origin,
    own_words,
    shown_url,
    version_of,
)
from files.writing import sync_folder

PATIENCE = 120  # seconds of waiting between the tries of one download, all together
MAX_UNPACKED_RATIO = 100


def url_to_filename(url, etag=None) -> str:
    """Return the cache's name for a version of `url`: the SHA-256 of the address, a dot and that of the ETag."""
    return ".".join(hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest() for part in (url, etag) if part)


def default_cache_dir() -> Path:
    """Return $MINBERT_CACHE or ~/.cache/minbert."""
    return Path(os.environ.get("MINBERT_CACHE") or "~/.cache/minbert").expanduser()


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
            passing = is_passing(status) if status else passing and not isinstance(error, SSLError)
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


def fetch(url, path: Path, force_download=False, sha256=None, **request) -> str:
    """Download `url` to `path` unless it is there; of several processes that ask at once, one does the work.

    What an interrupted download left is taken up if the server's ETag says that it belongs to the same version. The
    content must have the digest `sha256`, or without one that which a hub names; else Refused.
    """
    def attempt():
        etag, digest = version_of(url, **request)
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


def request_options(url, proxies, use_auth_token, user_agent=None) -> dict:
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
    `resume_download` changes nothing: an interrupted download is always resumed where that is safe.
    """
    cache, name = Path(cache_dir or default_cache_dir()), url_to_filename(url)
    versions = [path for path in cache.glob(f"{name}*") if re.fullmatch(rf"{name}(\.[0-9a-f]{{64}})?", path.name)]
    try:
        check_online(local_files_only)
        with own_words(url):
            request = request_options(url, proxies, use_auth_token, user_agent)
        etag, _ = retry(lambda: version_of(url, timeout=etag_timeout, **request), tries=1 if versions else 5)
        return fetch(url, cache / url_to_filename(url, etag), force_download, **request)
    except requests.RequestException as error:
        refused = error.response is not None and not is_passing(error.response.status_code)
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
