"""Ids to batches: the token cache on disk, rows of ids end to end, length buckets, batches of few shapes."""

import array
import contextlib
import hashlib
import inspect
import json
import os
import unicodedata
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import Sampler

from downloads import default_cache_dir
from files import atomic_write
from tokenizer import SETTINGS, BertTokenizer

# Padded tokens a batch may hold. bert-base trains on 8,192 in fp32 within 16 GB of memory. Texts apart may come to
# twice as many in training on a GPU: see extensions.pairs.encode_apart.
MAX_TOKENS_TRAIN, MAX_TOKENS_EVAL, MAX_TOKENS_EVAL_GPU = 8192, 16384, 32768
# Rows of an evaluation batch. On a CPU MiniLM takes 1.5 times as long for a row in batches of 256 as of 64.
EVAL_BATCH_SIZE, EVAL_BATCH_SIZE_GPU = 64, 512
BUCKETS = 24  # widths of the training batches of one data set

# Fewer texts are tokenized sooner than a file is checked; the folder keeps so many bytes, the last used.
TOKEN_CACHE_TEXTS, TOKEN_CACHE_BYTES, TOKEN_CACHE_FORMAT = 1000, 10**9, 1


def scoring_size(on_gpu):
    """Return (rows, padded tokens), the most that a batch holds of a data set that is scored, not trained on."""
    return (EVAL_BATCH_SIZE_GPU, MAX_TOKENS_EVAL_GPU) if on_gpu else (EVAL_BATCH_SIZE, MAX_TOKENS_EVAL)


def kept_head(budget, side):
    """Return how many of the `budget` tokens that a long text keeps are from its head."""
    return {"head": budget, "tail": 0, "head+tail": -(-budget // 4)}[side]  # rounded up


def truncate(ids, max_length, side="head"):
    """Cut [CLS] ... [SEP] to max_length ids, keeping both ends and the text's head, tail, or both.

    "head+tail" keeps a quarter from the head and the rest from the tail, the 128 + 382 of 510 that
    Sun et al. 2019 (https://arxiv.org/abs/1905.05583, section 5.3.1) found best.
    """
    excess = len(ids) - max_length
    if excess <= 0:
        return ids
    head = kept_head(max_length - 2, side)
    return ids[: 1 + head] + ids[1 + head + excess :]


class Sequences(NamedTuple):
    """N rows of ids, end to end: row i is ids[offsets[i] : offsets[i + 1]]."""

    ids: np.ndarray  # (total,) int32
    offsets: np.ndarray  # (N + 1,) int64
    second: np.ndarray | None = None  # (N,): how many ids of a row come before its second text

    def lengths(self):
        """Return each row's number of ids, (N,)."""
        return np.diff(self.offsets)

    def longest(self, rows):
        """Return the number of ids of the longest of these rows (B,)."""
        return int((self.offsets[1:][rows] - self.offsets[rows]).max())

    def pad(self, rows, width=None):
        """Return (token_ids, attention_mask, token_type_ids) of the rows (B,), int64 (B, T) padded with 0.

        T is `width`, by default the longest row's length; the types are 1 from the second text on.
        """
        starts = self.offsets[rows]
        lengths = self.offsets[1:][rows] - starts
        position = np.arange(width or lengths.max())  # (T,)
        mask = position < lengths[:, None]  # (B, T)
        attention_mask = mask.astype(np.int64)
        token_ids = self.ids.take(starts[:, None] + position, mode="clip") * attention_mask
        if self.second is None:
            return token_ids, attention_mask, np.zeros_like(token_ids)
        return token_ids, attention_mask, attention_mask * (position >= self.second[rows, None])


def join(texts, which, kept, max_length, side, cls, sep):
    """Return Sequences of rows [CLS] a [SEP] or [CLS] a [SEP] b [SEP].

    Row i has the texts which[i], (N, 1) or (N, 2), of which it keeps the first kept[i] tokens, once what is longer
    than [CLS] a [SEP] of max_length has been cut as by `truncate`.
    """
    budget, whole = max_length - 2, texts.lengths()[which].ravel()  # (N K,)
    offsets = np.concatenate([[0], np.cumsum(kept.sum(1) + kept.shape[1] + 1)])  # (N + 1,)
    separators = offsets[:-1, None] + np.cumsum(kept + 1, axis=1)  # (N, K)
    ids, is_text = np.full(offsets[-1], sep, dtype=np.int32), np.ones(offsets[-1], dtype=bool)
    ids[offsets[:-1]] = cls
    is_text[offsets[:-1]] = is_text[separators] = False

    kept_flat = kept.ravel()
    place = np.arange(kept_flat.sum()) - np.repeat(np.cumsum(kept_flat) - kept_flat, kept_flat)  # in its text
    if (whole > budget).any():
        skipped = np.repeat(np.maximum(whole - budget, 0), kept_flat)
        place += np.where(place < kept_head(budget, side), 0, skipped)
    ids[is_text] = texts.ids[place + np.repeat(texts.offsets[which.ravel()], kept_flat)]
    return Sequences(ids, offsets, kept[:, 0] + 2 if kept.shape[1] == 2 else None)


# ---- Token cache: the ids of a data set's texts, whole and without [CLS] and [SEP], in a file for the next run.


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


def bucket_edges(lengths, count=BUCKETS, batch_size=1):
    """Return the `count` widths (or fewer) to which rows of `lengths` (N,) can be padded with the least padding.

    By dynamic programming over the lengths that occur, w_0 < w_1 < ...: of the N_j rows up to w_j, the first
    B_j = N_j - N_j mod batch_size fill batches and the others wait for a wider one. The least number of padded
    tokens in k buckets up to w_j is P(j, k) = min over i < j of P(i, k - 1) + w_j (B_j - B_i).
    """
    widths, rows = np.unique(lengths, return_counts=True)  # (W,)
    if len(widths) <= count:
        return widths
    filled = np.concatenate([[0], np.cumsum(rows)])
    filled[:-1] -= filled[:-1] % batch_size
    tokens = np.triu(widths * (filled[1:] - filled[:-1, None])).astype(float)  # (W, W): of a bucket from i up to j
    tokens[np.tril_indices(len(widths), -1)] = np.inf
    least, choices = tokens[0], []
    for _ in range(count - 1):
        totals = least[:-1, None] + tokens[1:]  # (W - 1, W): of the last bucket but one the width is w_i
        choices.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
    edges = [len(widths) - 1]
    for choice in reversed(choices):
        edges.append(choice[edges[-1]])
    return widths[edges[::-1]]


class BucketBatchSampler(Sampler):
    """Batches of rows of about equal length, so that little of a batch is padding.

    `lengths` (N,) are token counts. A batch holds at most `batch_size` rows and at most `max_tokens`
    padded tokens. With `shuffle`, each row goes to the narrowest of a few buckets that holds it, and each
    bucket is cut into full batches; the rows left over go on to the next wider bucket. So training has few
    shapes of batches, the same in every epoch, of which only one has fewer rows than its width admits. Which
    rows meet is a function of seed and epoch alone, whatever else draws random numbers.
    """

    def __init__(self, lengths, batch_size, max_tokens=MAX_TOKENS_TRAIN, shuffle=True, seed=0):
        self.lengths = np.asarray(lengths)
        self.batch_size, self.max_tokens, self.shuffle, self.seed = batch_size, max_tokens, shuffle, seed
        self.edges = bucket_edges(self.lengths, batch_size=batch_size) if shuffle else np.unique(self.lengths)
        self.epoch = 0

    def set_epoch(self, epoch):
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def width(self, rows):
        """Return the number of tokens to which a batch of these rows is padded."""
        return int(self.edges[np.searchsorted(self.edges, self.lengths[rows].max())])

    def rows(self, width):
        """Return the number of rows of a full batch of this width."""
        return min(self.batch_size, max(1, self.max_tokens // width))

    def batches(self, epoch):
        """Return one epoch's batches, lists of row indices."""
        if not self.shuffle:
            return self.longest_first()
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.lengths))
        bucket = np.searchsorted(self.edges, self.lengths[order])
        batches, waiting = [], order[:0]
        for i, edge in enumerate(self.edges):
            waiting = np.concatenate([waiting, order[bucket == i]])
            rows, last = self.rows(edge), edge == self.edges[-1]
            full = len(waiting) if last else len(waiting) - len(waiting) % rows
            batches += [waiting[start : start + rows].tolist() for start in range(0, full, rows)]
            waiting = waiting[full:]
        return [batches[i] for i in rng.permutation(len(batches))]

    def longest_first(self):
        """Return the batches of rows sorted by length."""
        order, batches = np.argsort(-self.lengths, kind="stable"), []
        while len(order):
            rows = self.rows(self.lengths[order[0]])
            batches.append(order[:rows].tolist())
            order = order[rows:]
        return batches

    def __iter__(self):
        return iter(self.batches(self.epoch))

    def __len__(self):
        return len(self.batches(self.epoch))

    def padding_share(self, epoch=0):
        """Return the share of one epoch's padded tokens that is padding, from 0 to 1."""
        return 1 - self.lengths.sum() / sum(self.width(batch) * len(batch) for batch in self.batches(epoch))


class Batches:
    """The batches of a data set that a sampler chooses, gathered from flat arrays of tokens.

    With `pair_encoding` "cross" a pair is one sequence (token_ids, attention_mask, token_type_ids), what
    extensions.pairs.pack_pairs makes of the contract's batch; with "bi" the batch is the contract's,
    its two texts padded to one width, a multiple of 8: so it has few shapes, each a CUDA graph.
    Pinned batches move to a CUDA device without a wait.
    """

    def __init__(self, dataset, batch_sampler, pair_encoding="cross", pin_memory=False):
        self.dataset, self.batch_sampler = dataset, batch_sampler
        self.pair_encoding, self.pin_memory = pair_encoding, pin_memory and torch.cuda.is_available()
        self.sequences = dataset.sequences(pair_encoding) if hasattr(dataset, "sequences") else None

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        for rows in self.batch_sampler:
            yield self.build(rows, self.batch_sampler.width(rows))

    def described(self):
        """Return a line on the data set's rows and batches: how many, and how large."""
        sampler = self.batch_sampler
        longest = sampler.max_tokens // sampler.batch_size  # of the rows that a full batch may hold
        fewer = f"of fewer rows where padded to over {longest} tokens (--max_tokens), "
        return (f"{len(self.dataset)} rows in {len(self)} batches of {sampler.batch_size}, "
                f"{fewer if any(sampler.edges > longest) else ''}{sampler.padding_share():.1%} padding")

    def build(self, rows, width=None):
        """Return the batch of the rows with these indices, padded to `width`, by default the longest row's.

        Texts apart are both padded to the longest, and where `width`, their pair's, is given, to a multiple of 8.
        """
        data = [self.dataset[i] for i in rows]
        batch = self.dataset.collate_fn(data) if self.sequences is None else self.gather(np.asarray(rows), data, width)
        if self.pin_memory:
            batch = {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}
        return batch

    def sample(self, count, seed=0):
        """Return the batches of `count` random rows (of all, if there are fewer), a list: the same for a seed."""
        rows = np.random.default_rng(seed).permutation(len(self.dataset))[:count]
        rows = rows[np.argsort(-self.batch_sampler.lengths[rows], kind="stable")].tolist()
        return [self.build(rows[start : start + EVAL_BATCH_SIZE]) for start in range(0, len(rows), EVAL_BATCH_SIZE)]

    def gather(self, indices, data, width):
        """Return the batch of `data`, the rows with these indices."""
        batch = {"sent_ids": [row[-1] for row in data]}
        if width and len(self.sequences) > 1:
            longest = max(sequences.longest(indices) for sequences in self.sequences.values())
            width = min(-(-longest // 8) * 8, self.dataset.max_length)
        for suffix, sequences in self.sequences.items():
            token_ids, attention_mask, token_type_ids = map(torch.from_numpy, sequences.pad(indices, width))
            batch[f"token_ids{suffix}"], batch[f"attention_mask{suffix}"] = token_ids, attention_mask
            if self.dataset.texts == 2:
                batch[f"token_type_ids{suffix}"] = token_type_ids
        labels = self.dataset.labels(data)
        if labels is not None:
            batch["labels"] = labels
        if self.dataset.texts == 1:
            batch["sents"] = [row[0] for row in data]
        return batch


def bucket_loader(dataset, batch_size=EVAL_BATCH_SIZE, max_tokens=MAX_TOKENS_EVAL, shuffle=False, seed=0,
                  pair_encoding="cross", pin_memory=False):
    """Return Batches over length buckets; training shuffles, evaluation goes longest first."""
    sampler = BucketBatchSampler(dataset.lengths(), batch_size, max_tokens, shuffle, seed)
    return Batches(dataset, sampler, pair_encoding, pin_memory)
