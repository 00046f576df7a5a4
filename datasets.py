"""Rows to ids: data sets that tokenize each text once. The readers of files/tables.py have their names here too."""

from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.batching import join, truncate
from engine.token_cache import tokenize
from files.downloads import default_cache_dir
from files.tables import (  # noqa: F401 - names of the course's datasets.py
    load_multitask_data,
    load_multitask_test_data,
    preprocess_string,
)
from tokenizer import BertTokenizer

TRUNCATIONS = ("head", "tail", "head+tail")


@lru_cache(maxsize=4)
def load_tokenizer(pretrained, cache_dir):
    """Return the tokenizer of `pretrained`, one for all data sets."""
    return BertTokenizer.from_pretrained(pretrained, cache_dir=cache_dir)


def pad(sequences):
    """Return lists of ids as (token_ids, attention_mask), two (B, T) int64 tensors padded with 0."""
    lengths = np.array([len(ids) for ids in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
    token_ids = np.zeros(mask.shape, dtype=np.int64)
    token_ids[mask] = np.concatenate(sequences)
    return torch.from_numpy(token_ids), torch.from_numpy(mask.astype(np.int64))


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
        """Cut each pair to one sequence, the longer text first, as extensions.pairs.pack_pairs does."""
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
