"""Files to batches: readers for the course's files, data sets that tokenize once, length buckets, packed batches.

Rows are plain tuples, as the course has them: (sentence, label, id) and (sentence1, sentence2, label,
id); the rows of a test file lack the label.
"""

import array
import contextlib
import csv
import hashlib
import inspect
import json
import os
import unicodedata
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import Dataset, Sampler

from tokenizer import SETTINGS, BertTokenizer
from utils import UserError, atomic_write, default_cache_dir

TRUNCATIONS = ("head", "tail", "head+tail")
# Padded tokens a batch may hold. bert-base trains on 8,192 in fp32 within 16 GB of memory.
MAX_TOKENS_TRAIN, MAX_TOKENS_EVAL, MAX_TOKENS_EVAL_GPU = 8192, 16384, 32768
# Rows of an evaluation batch. On a CPU MiniLM takes 1.5 times as long for a row in batches of 256 as of 64.
EVAL_BATCH_SIZE, EVAL_BATCH_SIZE_GPU = 64, 512
BUCKETS = 16  # widths of the training batches of one data set

# Fewer texts are tokenized sooner than a file is checked; the folder keeps so many bytes, the last used.
TOKEN_CACHE_TEXTS, TOKEN_CACHE_BYTES, TOKEN_CACHE_FORMAT = 1000, 10**9, 1


def preprocess_string(s):
    """Lower-case a text and set its full stops, question marks, commas and apostrophes apart."""
    for mark in ".?,'":
        s = s.replace(mark, f" {mark}")
    return " ".join(s.lower().split())


def lower_strip(s):
    """Lower-case a text and strip the white space around it."""
    return s.lower().strip()


class FileFormat(NamedTuple):
    """What one task's files hold: the text columns, how they are cleaned, the label and its range."""

    texts: tuple
    clean: Callable
    label: str
    type: type
    maximum: int


SENTIMENT = FileFormat(("sentence",), lower_strip, "sentiment", int, 4)
PARAPHRASE = FileFormat(("sentence1", "sentence2"), preprocess_string, "is_duplicate", int, 1)
SIMILARITY = FileFormat(("sentence1", "sentence2"), preprocess_string, "similarity", float, 5)


def require_files(paths):
    """Raise UserError, naming them all, when some of the data files are not there."""
    missing = [str(path) for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(f"no data file {', '.join(missing)}; `python -m scripts.download_data` fetches the course's "
                        "files, and `python multitask_classifier.py --demo` does without them")


def read_table(path, columns=()):
    """Yield (line number, {column: text}) for the rows of a tab-separated file with a header line.

    Raises UserError when the file is missing, is no UTF-8 text, or lacks one of `columns`.
    """
    require_files([path])
    with open(path, encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t")
        try:
            absent = [column for column in columns if column not in (reader.fieldnames or [])]
            if absent:
                raise UserError(f"{path}, line 1: no column {', '.join(absent)} in the header {reader.fieldnames}; "
                                "is this the file of another task?")
            for record in reader:
                if None in record or None in record.values():  # more cells than columns, or fewer
                    raise UserError(f"{path}, line {reader.line_num}: the row has not the header's "
                                    f"{len(reader.fieldnames)} cells; mend or remove it")
                yield reader.line_num, record
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}, after line {reader.line_num}: {error}; save it as tab-separated UTF-8") from error


def parse_label(text, form, path, line):
    """Return the label of `form` that a cell's text spells, or raise UserError naming file and line."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= form.maximum or (form.type is int and value != int(value)):
        kind = "a whole number" if form.type is int else "a number"
        raise UserError(f"{path}, line {line}: {form.label} is {text!r}, but must be {kind} "
                        f"from 0 to {form.maximum}; mend or remove the row")
    return form.type(value)


def read_rows(path, form, labelled=True):
    """Read one file into rows; prints how many, and how many were skipped for want of a label."""
    rows, unlabelled = [], 0
    for line, record in read_table(path, ("id", *form.texts, *([form.label] if labelled else []))):
        row = [form.clean(record[column]) for column in form.texts]
        if labelled:
            if not record[form.label].strip():
                unlabelled += 1
                continue
            row.append(parse_label(record[form.label], form, path, line))
        rows.append((*row, lower_strip(record["id"])))
    if not rows:
        raise UserError(f"{path} holds no row{' with a label' if unlabelled else ''}; fetch or write it again")
    skipped = f" ({unlabelled} rows without a label skipped)" if unlabelled else ""
    print(f"load {len(rows)} data from {path}{skipped}")
    return rows


def prediction_ids(path):
    """Return the ids that predictions for this file must hold, in file order: all rows not left unlabelled."""
    labels = {form.label for form in (SENTIMENT, PARAPHRASE, SIMILARITY)}
    return [lower_strip(record["id"]) for _, record in read_table(path, ("id",))
            if all(record[column].strip() for column in labels & record.keys())]


def load_multitask_data(sentiment_filename, paraphrase_filename, similarity_filename, split="train"):
    """Return (sst rows, num_labels, para rows, sts rows) of one split: "train", "dev" or "test".

    `num_labels` maps each sentiment label to the order in which it was met, and is empty for "test".
    A file name of None leaves its task out: no rows.
    """
    labelled = split != "test"
    sst, para, sts = (
        read_rows(filename, form, labelled) if filename else []
        for filename, form in ((sentiment_filename, SENTIMENT), (paraphrase_filename, PARAPHRASE),
                               (similarity_filename, SIMILARITY))
    )
    num_labels = {label: index for index, label in enumerate(dict.fromkeys(row[1] for row in sst))} if labelled else {}
    return sst, num_labels, para, sts


def load_multitask_test_data(*args, **kwargs):
    """Raise: the 2023 edition's function read files that never existed."""
    raise UserError("load_multitask_test_data is no longer there; "
                    "call load_multitask_data(sst_file, para_file, sts_file, split='test')")


@lru_cache(maxsize=4)
def load_tokenizer(pretrained, cache_dir):
    """Return the tokenizer of `pretrained`, one for all data sets."""
    return BertTokenizer.from_pretrained(pretrained, cache_dir=cache_dir)


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


def pad(sequences):
    """Return lists of ids as (token_ids, attention_mask), two (B, T) int64 tensors padded with 0."""
    lengths = np.array([len(ids) for ids in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
    token_ids = np.zeros(mask.shape, dtype=np.int64)
    token_ids[mask] = np.concatenate(sequences)
    return torch.from_numpy(token_ids), torch.from_numpy(mask.astype(np.int64))


class Sequences(NamedTuple):
    """N rows of ids, end to end: row i is ids[offsets[i] : offsets[i + 1]]."""

    ids: np.ndarray  # (total,) int32
    offsets: np.ndarray  # (N + 1,) int64
    second: np.ndarray | None = None  # (N,): how many ids of a row come before its second text

    def lengths(self):
        """Return each row's number of ids, (N,)."""
        return np.diff(self.offsets)

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


def load_tokens(path):
    """Return the Sequences in a file of the cache; None if there is none, or one that is damaged or misplaced."""
    try:
        with safe_open(path, "numpy") as file:
            tokens, metadata = Sequences(file.get_tensor("ids"), file.get_tensor("offsets")), file.metadata()
    except (OSError, SafetensorError):
        return None
    if metadata != {"key": path.stem, "sha256": token_digest(tokens.ids, tokens.offsets)}:
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read serves as well
        os.utime(path)
    return tokens


def save_tokens(path, tokens):
    """Write Sequences to the cache and drop what has not been used for longest; a warning where that cannot be."""
    metadata = {"key": path.stem, "sha256": token_digest(tokens.ids, tokens.offsets)}
    try:
        with atomic_write(path, "wb") as file:
            file.write(save({"ids": tokens.ids, "offsets": tokens.offsets}, metadata))
        size = 0
        for stat, entry in sorted(((entry.stat(), entry) for entry in path.parent.iterdir()),
                                  key=lambda found: -found[0].st_mtime_ns):
            size += stat.st_size
            if size > TOKEN_CACHE_BYTES:
                entry.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(f"tokens are not kept for the next run: {error.strerror}", stacklevel=2)


def tokenize(texts, tokenizer):
    """Return the ids of a list of texts, without [CLS] and [SEP], from the cache if they are there.

    MINBERT_TOKEN_CACHE=0 turns the cache off.
    """
    cached = (len(texts) >= TOKEN_CACHE_TEXTS and os.environ.get("MINBERT_TOKEN_CACHE") != "0"
              and type(tokenizer) is BertTokenizer)  # another's ids may depend on what the key does not hold
    path = token_cache_path(texts, tokenizer) if cached else None
    tokens = load_tokens(path) if cached else None
    if tokens is None:
        ids, offsets = array.array("i"), array.array("q", [0])
        for text in texts:
            ids.extend(tokenizer.encode(text, add_special_tokens=False))
            offsets.append(len(ids))
        tokens = Sequences(np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int64))
        if cached:
            save_tokens(path, tokens)
    return tokens


class TextDataset(Dataset):
    """Rows with the tokenizer that `args.pretrained` names; every text is tokenized once.

    A row is its texts (`texts` of them), in labelled sets the label, and the id. `names` are a batch's keys.
    """

    texts, names = 1, ()

    def __init__(self, dataset, args):
        self.dataset = dataset
        self.p = args
        self.tokenizer = load_tokenizer(getattr(args, "pretrained", "bert-base-uncased"), default_cache_dir())
        longest = self.tokenizer.model_max_length
        self.max_length = min(getattr(args, "max_length", None) or longest, longest)
        self.truncation = getattr(args, "truncation", "head")
        self._ids, self._tokens = {}, None

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]

    def encode(self, text):
        """Return the ids of [CLS] text [SEP], cut to max_length."""
        ids = self._ids.get(text)
        if ids is None:
            ids = truncate(self.tokenizer.encode(text), self.max_length, self.truncation)
            self._ids[text] = ids
        return ids

    def collate_fn(self, all_data):
        """Return the batch of the contract for some rows: tensors with B first, lists of length B."""
        return dict(zip(self.names, self.pad_data(all_data), strict=True))

    def labels(self, rows):
        """Return the rows' labels, a tensor (B,); None where rows have none."""
        return None

    @property
    def tokens(self):
        """Sequences of the distinct texts, and which of them each row has, (N, texts)."""
        if self._tokens is None or self._tokens[0] is not self.dataset:  # a copy may have been given other rows
            index = {}
            which = [index.setdefault(text, len(index)) for row in self.dataset for text in row[: self.texts]]
            which = np.array(which, dtype=np.int64).reshape(-1, self.texts)
            self._tokens = self.dataset, tokenize(list(index), self.tokenizer), which
        return self._tokens[1:]

    def kept_apart(self):
        """Return how many tokens each row's texts have once each is cut to max_length, (N, texts)."""
        tokens, which = self.tokens
        return np.minimum(tokens.lengths()[which], self.max_length - 2)

    def kept(self):
        """Return how many tokens each row's texts have in one sequence of max_length, (N, texts)."""
        return self.kept_apart()

    def lengths(self):
        """Return each row's number of tokens in one sequence, (N,)."""
        return self.kept().sum(1) + self.texts + 1

    def sequences(self, pair_encoding="cross"):
        """Return {suffix: Sequences}: the suffix is what a batch's keys end in, "" or, of texts apart, _1 and _2."""
        which = self.tokens[1]
        parts = {"": (which, self.kept())}
        if self.texts == 2 and pair_encoding == "bi":
            parts = {f"_{side + 1}": (which[:, [side]], self.kept_apart()[:, [side]]) for side in (0, 1)}
        ends = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return {suffix: join(self.tokens[0], *part, self.max_length, self.truncation, *ends)
                for suffix, part in parts.items()}


class SentenceClassificationTestDataset(TextDataset):
    """Sentences without labels: rows (sentence, id)."""

    names = ("token_ids", "attention_mask", "sents", "sent_ids")

    def pad_data(self, data):
        """Return (token_ids, attention_mask, sents, sent_ids) of rows (sentence, id)."""
        sents = [row[0] for row in data]
        return *pad([self.encode(sent) for sent in sents]), sents, [row[-1] for row in data]


class SentenceClassificationDataset(SentenceClassificationTestDataset):
    """Labelled sentences: rows (sentence, label, id)."""

    names = ("token_ids", "attention_mask", "labels", "sents", "sent_ids")

    def labels(self, rows):
        """Return the rows' labels, int64 (B,)."""
        return torch.tensor([row[1] for row in rows])

    def pad_data(self, data):
        """Return (token_ids, attention_mask, labels, sents, sent_ids), labels int64."""
        token_ids, attention_mask, sents, sent_ids = super().pad_data(data)
        return token_ids, attention_mask, self.labels(data), sents, sent_ids


class SentencePairTestDataset(TextDataset):
    """Pairs without labels: rows (sentence1, sentence2, id)."""

    texts = 2
    names = (*(f"{name}_{side}" for side in (1, 2) for name in ("token_ids", "token_type_ids", "attention_mask")),
             "sent_ids")

    def encode_pair(self, first, second):
        """Return the ids of both texts, each cut to max_length.

        Packing cuts the longer text first. So that it still sees which one that was when both are too long,
        the second, if shorter, gives up one more token, which packing would take anyway.
        """
        a, b = self.encode(first), self.encode(second)
        if len(a) == len(b) == self.max_length:
            whole_a, whole_b = (len(self.tokenizer.encode(text)) for text in (first, second))
            b = b[:-2] + b[-1:] if whole_a > whole_b else b
        return a, b

    def kept_apart(self):
        """As of any texts, with the exception that `encode_pair` makes."""
        tokens, which = self.tokens
        whole, kept = tokens.lengths()[which], super().kept_apart()
        kept[:, 1] -= (kept == self.max_length - 2).all(1) & (whole[:, 0] > whole[:, 1])
        return kept

    def kept(self):
        """Cut each pair to one sequence, the longer text first, as multitask_classifier.pack_pairs does."""
        kept, budget = self.kept_apart(), self.max_length - 3
        shorter = np.minimum(kept.min(1), budget // 2)
        longer = np.minimum(kept.max(1), budget - shorter)
        in_order = kept[:, 0] <= kept[:, 1]
        return np.stack([np.where(in_order, shorter, longer), np.where(in_order, longer, shorter)], axis=1)

    def pad_data(self, data):
        """Return ids, types and mask of the first texts, the same of the second, and the ids of the rows."""
        columns = []
        pairs = [self.encode_pair(row[0], row[1]) for row in data]
        for side in (0, 1):
            token_ids, attention_mask = pad([pair[side] for pair in pairs])
            columns += [token_ids, torch.zeros_like(token_ids), attention_mask]
        return *columns, [row[-1] for row in data]


class SentencePairDataset(SentencePairTestDataset):
    """Labelled pairs: rows (sentence1, sentence2, label, id); regression labels are float64 here."""

    names = (*SentencePairTestDataset.names[:-1], "labels", "sent_ids")

    def __init__(self, dataset, args, isRegression=False):
        super().__init__(dataset, args)
        self.isRegression = isRegression

    def labels(self, rows):
        """Return the rows' labels, int64 or float64 (B,)."""
        return torch.tensor([row[2] for row in rows], dtype=torch.float64 if self.isRegression else torch.int64)

    def pad_data(self, data):
        """As without labels, with labels (B,) before the ids of the rows."""
        *columns, sent_ids = super().pad_data(data)
        return *columns, self.labels(data), sent_ids


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
    multitask_classifier.pack_pairs makes of the contract's batch; with "bi" the batch is the contract's.
    Pinned batches move to a CUDA device without a wait.
    """

    def __init__(self, dataset, batch_sampler, pair_encoding="cross", pin_memory=False):
        self.dataset, self.batch_sampler = dataset, batch_sampler
        self.pair_encoding, self.pin_memory = pair_encoding, pin_memory and torch.cuda.is_available()
        self.sequences = dataset.sequences(pair_encoding) if isinstance(dataset, TextDataset) else None

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        for rows in self.batch_sampler:
            yield self.build(rows, self.batch_sampler.width(rows))

    def build(self, rows, width=None):
        """Return the batch of the rows with these indices, padded to `width`, by default the longest row's.

        Texts apart are always padded to the longest.
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
        for suffix, sequences in self.sequences.items():
            token_ids, attention_mask, token_type_ids = map(
                torch.from_numpy, sequences.pad(indices, None if suffix else width))
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
