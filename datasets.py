"""Files to rows to ids: the readers of several tasks' files, and data sets that tokenize each text once."""

import sys

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.batching import join, truncate
from engine.token_cache import tokenize
from files.downloads import default_cache_dir
from files.errors import UserError, speaks
from files.tables import preprocess_string  # noqa: F401 - a name of the course's datasets.py
from tasks import COURSE_TASKS, SENTIMENT, TASKS, formats, in_order, read_rows, read_sound
from tokenizer import load_tokenizer, longest_first


def read_tasks(files, split="train", skip_bad_rows=False):
    """Return {task: rows} of one split, "train", "dev" or "test", from {task: path}, in the order of the table."""
    rows = {task: read_rows(files[task], TASKS[task].form, split != "test", skip_bad_rows) for task in in_order(files)}
    for task in rows if split != "test" else ():
        warn_of_fewer_classes(task, files[task], rows[task])
    return rows


def warn_of_fewer_classes(task, path, rows):
    """Warn when no label is above those of another task with the same columns; a few rows may be so by chance."""
    form = TASKS[task].form
    for other in formats():
        if ((other.texts, other.label) == (form.texts, form.label) and other.maximum < form.maximum
                and len(rows) >= 20 and all(row[-2] <= other.maximum for row in rows) and speaks()):
            labels = "0 and 1" if other.maximum == 1 else f"0 to {other.maximum}"
            print(f"warning: the labels of {path} are {labels} alone, and {form.name}'s are 0 to {form.maximum}: is "
                  f"this a file of {other.name}?", file=sys.stderr)


def require_labels(train_file, dev_file, train_rows, dev_rows):
    """Raise UserError unless the labels are 0 to one less than there are in the training rows."""
    labels = {row[1] for row in train_rows}
    stray = {row[1] for row in (*train_rows, *dev_rows)} - set(range(len(labels)))
    if stray:
        hint = "; 0 and 1 alone are CFIMDB's labels: were two files swapped?" if labels == {0, 1} else ""
        raise UserError(f"{train_file} has {len(labels)} different labels, which must be 0 to {len(labels) - 1}, and "
                        f"there or in {dev_file} stands {', '.join(map(str, sorted(stray)))}: add rows of the labels "
                        f"between, or number them anew{hint}")


def require_labelled(task, train_file, dev_file, *test_files, skip_bad_rows=False):
    """Read the files of a classifier before any work, and raise UserError when one of them will not do."""
    train, dev, *_ = (read_sound(path, SENTIMENT, path not in test_files, skip_bad_rows)[0]
                      for path in (train_file, dev_file, *test_files))
    require_labels(train_file, dev_file, train, dev)
    warn_of_fewer_classes(task, train_file, train)
    warn_of_fewer_classes(task, dev_file, dev)


def load_multitask_data(sentiment_filename, paraphrase_filename, similarity_filename, split="train",
                        skip_bad_rows=False):
    """Return (sst rows, num_labels, para rows, sts rows) of one split: "train", "dev" or "test".

    `num_labels` maps each sentiment label to the order in which it was met, and is empty for "test".
    A file name of None leaves its task out: no rows.
    """
    files = dict(zip(COURSE_TASKS, (sentiment_filename, paraphrase_filename, similarity_filename), strict=True))
    rows = read_tasks({task: path for task, path in files.items() if path}, split, skip_bad_rows)
    sst, para, sts = (rows.get(task, []) for task in COURSE_TASKS)
    labels = dict.fromkeys(row[1] for row in sst) if split != "test" else ()
    return sst, {label: index for index, label in enumerate(labels)}, para, sts


def load_multitask_test_data(*args, **kwargs):
    """Raise: the 2023 edition's function read files that never existed."""
    raise UserError("load_multitask_test_data is no longer there; "
                    "call load_multitask_data(sst_file, para_file, sts_file, split='test')")


def low_shot(rows, count, seed):
    """Return `count` of the rows, or that share of them ("10%"), the same for the same seed; all when it is None."""
    if isinstance(count, str):
        count = max(1, round(len(rows) * float(count[:-1]) / 100))
    if count is None or count >= len(rows):
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return [rows[i] for i in sorted(chosen.tolist())]


def dataset_of(task, rows, args, labelled=True):
    """Return the data set of a task's rows; `args` may have `pretrained`, `max_length` and `truncation`."""
    is_pair = TASKS[task].is_pair
    if not labelled:
        return (SentencePairTestDataset if is_pair else SentenceClassificationTestDataset)(rows, args)
    dataset = SentencePairDataset if is_pair else SentenceClassificationDataset
    return dataset(rows, args, isRegression=TASKS[task].kind == "real")


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


class LabelledDataset(TextDataset):
    """Rows with labels: int64, or float64 for regression."""

    def __init__(self, dataset, args, isRegression=False):
        super().__init__(dataset, args)
        self.isRegression = isRegression

    def labels(self, rows):
        """Return the rows' labels, int64 or float64 (B,)."""
        return torch.tensor([row[-2] for row in rows], dtype=torch.float64 if self.isRegression else torch.int64)


class SentenceClassificationTestDataset(TextDataset):
    """Sentences without labels: rows (sentence, id)."""

    names = ("token_ids", "attention_mask", "sents", "sent_ids")

    def pad_data(self, data):
        """Return (token_ids, attention_mask, sents, sent_ids) of rows (sentence, id)."""
        sents = [row[0] for row in data]
        return *pad([self.encode(sent) for sent in sents]), sents, [row[-1] for row in data]


class SentenceClassificationDataset(LabelledDataset, SentenceClassificationTestDataset):
    """Labelled sentences: rows (sentence, label, id)."""

    names = ("token_ids", "attention_mask", "labels", "sents", "sent_ids")

    def pad_data(self, data):
        """Return (token_ids, attention_mask, labels, sents, sent_ids)."""
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
        """As many as packing each pair into one sequence keeps, the longer text cut first."""
        return np.stack(longest_first(*self.kept_apart().T, self.max_length - 3), axis=1)

    def pad_data(self, data):
        """Return ids, types and mask of the first texts, the same of the second, and the ids of the rows."""
        columns = []
        pairs = [self.encode_pair(row[0], row[1]) for row in data]
        for side in (0, 1):
            token_ids, attention_mask = pad([pair[side] for pair in pairs])
            columns += [token_ids, torch.zeros_like(token_ids), attention_mask]
        return *columns, [row[-1] for row in data]


class SentencePairDataset(LabelledDataset, SentencePairTestDataset):
    """Labelled pairs: rows (sentence1, sentence2, label, id)."""

    names = (*SentencePairTestDataset.names[:-1], "labels", "sent_ids")

    def pad_data(self, data):
        """As without labels, with labels (B,) before the ids of the rows."""
        *columns, sent_ids = super().pad_data(data)
        return *columns, self.labels(data), sent_ids
