"""What `benchmarks.throughput` trains on: rows of the course's files, or made-up rows that are as long.

One multitask epoch of the course's size. Where the files are absent, lengths come from `LENGTHS` and words from
data/sample: such rows say nothing, but take every contender through the same work as the course's.
"""

import contextlib
import io
import itertools
import os

import numpy as np

from datasets import read_tasks
from files.errors import UserError
from tasks import COURSE_TASKS, TASKS

TRAIN_EXAMPLES = {"sst": 8544, "para": 141506, "sts": 6040}
SCORE_EXAMPLES = {"sst": 1101 + 2210, "para": 20212 + 40431, "sts": 863 + 1725}  # dev and test
SAMPLE_DIR = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "sample")
# How many training rows have how many tokens as one packed sequence: the first length, the counts of it and those
# that follow, the lengths of the few longer rows. Of Quora 19,632 of the course's rows were at hand.
LENGTHS = {
    "sst": (4,
        "24 62 86 98 145 159 178 215 217 254 236 245 262 260 297 281 309 258 291 295 274 265 285 239 279 255 237 "
        "208 193 206 197 171 179 154 133 104 109 108 88 91 99 58 61 59 50 37 25 30 31 30 21 20 21 10 9 9 6 6 1 7 "
        "1 1 1",
        [69, 71, 78, 80]),
    "para": (11,
        "8 42 68 138 221 303 434 537 732 808 948 983 1069 967 1015 867 841 763 750 654 599 524 501 463 428 364 "
        "350 362 353 290 269 198 195 187 192 153 191 127 160 123 130 134 96 84 71 67 76 54 58 47 53 49 43 37 37 "
        "29 21 22 32 27 30 26 23 19 13 17 12 10 12 10 12 5 7 6 8 4 4 1 2 7 1 3 5 5 1 4 1 1 2 5 2 1",
        [104, 105, 105, 106, 106, 106, 107, 107, 107, 108, 108, 110, 110, 111, 112, 114, 116, 117, 117, 121, 123,
         124, 132, 137, 138, 150, 153, 315, 327]),
    "sts": (9,
        "1 1 10 13 73 83 188 286 436 356 397 365 335 311 285 238 239 169 143 135 101 117 92 86 92 86 66 54 57 54 "
        "49 56 51 60 51 48 48 47 44 43 46 26 26 38 33 28 38 26 21 30 46 32 25 24 17 22 26 13 17 10 14 20 15 16 12 "
        "11 4 6 3 4 3 4 3 3 2 1",
        [86, 86, 87, 87, 88, 92, 94, 95, 125]),
}


def read_files(folder):
    """Return {task: rows (texts..., label)} of the course's three training files, or None where there are not all."""
    paths = {task: TASKS[task].data_file(folder, "train") for task in COURSE_TASKS}
    if not all(map(os.path.isfile, paths.values())):
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it loads
        return {task: [row[:-1] for row in rows] for task, rows in read_tasks(paths).items()}  # without the id


def sample_words(tokenizer):
    """Yield (word, its number of pieces) of data/sample's texts, without end."""
    rows = read_files(SAMPLE_DIR)
    if rows is None:
        raise UserError(f"{SAMPLE_DIR} is not whole; fetch the repository again")
    words = [word for task_rows in rows.values() for row in task_rows for text in row[:-1] for word in text.split()]
    return itertools.cycle([(word, len(tokenizer.tokenize(word))) for word in words])


def text_of(length, words):
    """Return a text of `length` pieces, made of the next words that fit."""
    text = []
    while length > 0:
        word, pieces = next(words)
        if 0 < pieces <= length:
            text.append(word)
            length -= pieces
    return " ".join(text)


def lengths_of(task):
    """Return the packed lengths of LENGTHS, one a row, an increasing int array."""
    first, counts, longer = LENGTHS[task]
    counts = np.array(counts.split(), dtype=int)
    return np.concatenate([np.repeat(np.arange(first, first + len(counts)), counts), longer])


def made_up(tokenizer, rng):
    """Return {task: rows} as `read_files`, of the lengths in LENGTHS."""
    words, rows = sample_words(tokenizer), {}
    for task in COURSE_TASKS:
        lengths = rng.permutation(lengths_of(task))
        if not TASKS[task].is_pair:
            rows[task] = [(text_of(n - 2, words), int(rng.integers(5))) for n in lengths]
            continue
        # of the three special tokens two remain; one text has about half of a pair's tokens: sd 9 % and 6 %
        first = np.rint((lengths - 3) * rng.normal(0.5, 0.09 if task == "para" else 0.06, len(lengths))).astype(int)
        first = np.clip(first, 1, lengths - 4)
        rows[task] = [(text_of(a, words), text_of(n - 3 - a, words), int(rng.integers(2))) for a, n in
                      zip(first, lengths)]
    return rows


def workload(folder, limit, tokenizer, seed):
    """Return ({task: rows (texts..., label)}, {task: lengths (N, 1 or 2)}, where the texts are from).

    Of each task at most `limit` rows are drawn; a length counts the tokens of [CLS] text [SEP].
    """
    rng = np.random.default_rng(seed)
    rows, source = read_files(folder), folder
    if rows is None:
        rows, source = made_up(tokenizer, rng), "words of data/sample in the lengths of the course's rows"
    rows = {task: [rows[task][i] for i in rng.permutation(len(rows[task]))[:limit]] for task in COURSE_TASKS}
    lengths = {task: [[len(tokenizer.encode(text)) for text in row[:-1]] for row in rows[task]] for task in rows}
    return rows, lengths, source


def packed(lengths):
    """Return the lengths (N,) of one sequence a row of lengths (N, 1 or 2): two texts share one [CLS]."""
    lengths = np.asarray(lengths)
    return lengths.sum(1) - (lengths.shape[1] - 1)


def epoch_work(lengths, architecture, examples):
    """Return (real tokens, FLOPs) of training once on `examples` {task: number} of packed rows, without padding.

    A token takes two operations a weight of the layers' matrices, in the backward pass twice as many again; attention
    takes 4 T² C in each layer (q kᵀ and the product with v), likewise three times.
    """
    C, layers = architecture["hidden_size"], architecture["num_hidden_layers"]
    matrices = layers * (4 * C * C + 2 * C * architecture["intermediate_size"])
    tokens = flops = 0
    for task, count in examples.items():
        T = packed(lengths[task])
        tokens += T.mean() * count
        flops += (6 * matrices * T + 12 * layers * C * T**2).mean() * count
    return tokens, flops
