"""Ids to batches: rows of ids end to end, length buckets, batches of few shapes."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

# Padded tokens a batch may hold. bert-base trains on 8,192 in fp32 within 16 GB of memory. Texts apart may come to
# twice as many in training on a GPU: see extensions.heads.pairs.encode_apart.
MAX_TOKENS_TRAIN, MAX_TOKENS_EVAL, MAX_TOKENS_EVAL_GPU = 8192, 16384, 32768
# Rows of an evaluation batch. On a CPU MiniLM takes 1.5 times as long for a row in batches of 256 as of 64.
EVAL_BATCH_SIZE, EVAL_BATCH_SIZE_GPU = 64, 512
TRUNCATIONS = ("head", "tail", "head+tail")  # the end of a long text that is kept
BUCKETS = 24  # widths of the training batches of one data set


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
    extensions.heads.pairs.pack_pairs makes of the contract's batch; with "bi" the batch is the contract's,
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

    def resized(self, batch_size):
        """Return a loader over the same rows with batches of another size."""
        old, new = self.batch_sampler, copy.copy(self)
        new.batch_sampler = BucketBatchSampler(old.lengths, batch_size, old.max_tokens, old.shuffle, old.seed)
        return new

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
