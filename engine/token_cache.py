"""The token cache: the ids of a data set's texts, in a file for the next run."""

import array
import contextlib
import hashlib
import inspect
import json
import os
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.batching import Sequences
from files.downloads import default_cache_dir
from files.writing import atomic_write
from tokenizer import SETTINGS, BertTokenizer

# Fewer texts are tokenized sooner than a file is checked; the folder keeps so many bytes, the last used.
TOKEN_CACHE_TEXTS, TOKEN_CACHE_BYTES, TOKEN_CACHE_FORMAT = 1000, 10**9, 1


def token_digest(*arrays):
    """Return the SHA-256 of arrays: their types, shapes and values."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(f"{values.dtype.str} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


def token_cache_path(texts, tokenizer):
    """Return the cache's file for these texts: its name tells apart all that their ids depend on."""
    settings = [TOKEN_CACHE_FORMAT, unicodedata.unidata_version, {name: getattr(tokenizer, name) for name in SETTINGS}]
    parts = [json.dumps(settings, sort_keys=True).encode(), Path(inspect.getfile(BertTokenizer)).read_bytes()]
    for strings in (list(tokenizer.vocab), texts):
        parts += [np.array(list(map(len, strings))), "".join(strings).encode("utf-8", "surrogatepass")]
    key = token_digest(*(np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part for part in parts))
    return default_cache_dir() / "tokens" / f"{key}.safetensors"


def load_tokens(path, rows, vocab_size):
    """Return the Sequences in a file of the cache; None if there is none, or one that is damaged or misplaced.

    What others wrote may have the right digest and still not be `rows` rows of ids below `vocab_size`.
    """
    try:
        with safe_open(path, "numpy") as file:
            (length,), (count,) = (file.get_slice(name).get_shape() for name in ("ids", "offsets"))
            if count != rows + 1 or {file.get_slice(name).get_dtype() for name in ("ids", "offsets")} != {"I32", "I64"}:
                return None
            tokens, metadata = Sequences(file.get_tensor("ids"), file.get_tensor("offsets")), file.metadata()
    except (OSError, ValueError, SafetensorError):
        return None
    if metadata != {"key": path.stem, "sha256": token_digest(tokens.ids, tokens.offsets)}:
        return None
    if tokens.ids.dtype != np.int32 or tokens.offsets[0] != 0 or tokens.offsets[-1] != length:
        return None
    if (tokens.lengths() < 0).any() or (length and not 0 <= tokens.ids.min() <= tokens.ids.max() < vocab_size):
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read serves as well
        os.utime(path)
    return tokens


def save_tokens(path, tokens):
    """Write Sequences to the cache; a warning where that cannot be."""
    save_cached("tokens", path, TOKEN_CACHE_BYTES, ids=tokens.ids, offsets=tokens.offsets)


def save_cached(what, path, limit, **arrays):
    """Write arrays to a file of a cache, and drop what there has not been used for longest beyond `limit` bytes.

    Where that cannot be, a warning says that `what` is not kept.
    """
    metadata = {"key": path.stem, "sha256": token_digest(*arrays.values())}
    try:
        with atomic_write(path, "wb") as file:
            file.write(save(arrays, metadata))
        size = 0
        for stat, entry in sorted(((entry.stat(), entry) for entry in path.parent.glob("*.safetensors")),
                                  key=lambda found: -found[0].st_mtime_ns):
            size += stat.st_size
            if size > limit:
                entry.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"{what} are not kept for the next run: {error.strerror}", stacklevel=3)


def tokenize(texts, tokenizer):
    """Return the ids of a list of texts, without [CLS] and [SEP], from the cache if they are there.

    MINBERT_TOKEN_CACHE=0 turns the cache off.
    """
    cached = (len(texts) >= TOKEN_CACHE_TEXTS and os.environ.get("MINBERT_TOKEN_CACHE") != "0"
              and type(tokenizer) is BertTokenizer)  # another's ids may depend on what the key does not hold
    path = token_cache_path(texts, tokenizer) if cached else None
    tokens = load_tokens(path, len(texts), len(tokenizer)) if cached else None
    if tokens is None:
        ids, offsets = array.array("i"), array.array("q", [0])
        for text in texts:
            ids.extend(tokenizer.encode(text, add_special_tokens=False))
            offsets.append(len(ids))
        tokens = Sequences(np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int64))
        if cached:
            save_tokens(path, tokens)
    return tokens
