"""The table of tasks: what their files hold, how they are trained, scored and written. Add yours here.

Everything that loops over tasks reads this table, so that one entry is a whole task: `python multitask_classifier.py
--tasks sst toy` then trains, scores and predicts it, and prepare_submit.py checks and packs its predictions.
"""

import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score

from files import tables
from files.tables import FileFormat, lower_strip, preprocess_string

SPLITS = {"train": "train", "dev": "dev", "test": "test-student"}  # in flags -> in the names of data files
PREDICTED = ("dev", "test")  # the splits of which predictions are written


def accuracy(predictions, labels):
    """Return the share of predictions that equal their labels."""
    return float(accuracy_score(labels, predictions))


def pearson(predictions, labels):
    """Return the Pearson correlation of two lists; 0.0 with a warning where it is undefined."""
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        warnings.warn("similarity: one row, or constant predictions or labels, have no correlation: scored 0.0",
                      stacklevel=2)
        return 0.0
    return float(np.corrcoef(predictions, labels)[0, 1])


def is_finite(text):
    """Tell whether the text is a decimal number of a sensible length; nan and inf are not."""
    if len(text) >= 100 or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text, re.ASCII):
        return False
    return math.isfinite(float(text))


@dataclass(frozen=True)
class Kind:
    """What a label is, and with it what a model's output means.

    `decide` turns logits, (N, K) of classes or (N,), into a list of predictions as they are scored and written;
    `outputs(form)` is the number of logits a row, `valid(form)` the texts that may stand in a prediction file, None for
    any finite number.
    """

    decide: Callable
    outputs: Callable
    valid: Callable


KINDS = {
    # one of 0 .. maximum; the most likely class, an int
    "classes": Kind(lambda logits: logits.argmax(dim=-1).tolist(), lambda form: form.maximum + 1,
                    lambda form: [str(label) for label in range(form.maximum + 1)]),
    # 0 or 1; one logit, 1.0 above 0, where the probability is above a half
    "binary": Kind(lambda logits: (logits > 0).float().tolist(), lambda form: 1, lambda form: ["0.0", "1.0"]),
    # a number from 0 to maximum; the model's output as it is
    "real": Kind(lambda logits: logits.tolist(), lambda form: 1, lambda form: None),
}


@dataclass(frozen=True)
class Task:
    """One task. `files` and `output` have {} where the split stands; `overall` is the metric's part of the mean."""

    name: str  # in flags, checkpoints and results
    form: FileFormat  # the columns of its files: one text or a pair, the label and its range; and what people call it
    kind: str  # of label and output: a key of KINDS
    files: str  # its data files
    header: str  # of its prediction files
    loss: str  # by default, one of extensions.losses
    metric: Callable = accuracy  # fn(predictions, labels) -> float, higher is better
    overall: Callable = float
    head: str = ""  # the model's attribute, and so the checkpoint's keys; by default NAME_head

    def __post_init__(self):
        if not self.name.isidentifier():
            raise ValueError(f"task {self.name!r}: the name stands in flags and options; take letters, digits and _")
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name}: kind is {self.kind!r}; choose one of {', '.join(KINDS)}")
        object.__setattr__(self, "head", self.head or f"{self.name}_head")

    @property
    def is_pair(self):
        """Whether a row has two texts."""
        return len(self.form.texts) == 2

    @property
    def outputs(self):
        """The number of logits a row."""
        return KINDS[self.kind].outputs(self.form)

    @property
    def method(self):
        """The course's name of a model's method that returns the logits: predict_sentiment of a sentiment_head."""
        return f"predict_{self.head.removesuffix('_head')}"

    def decide(self, logits):
        """Return the predictions of logits, (N, K) of classes or (N,): a list of ints or floats."""
        return KINDS[self.kind].decide(logits)

    def data_file(self, data_dir, split):
        """Return where a split's rows are in a folder."""
        return os.path.join(data_dir, self.files.format(SPLITS[split]))

    def prediction_file(self, predictions_dir, split):
        """Return where predictions for "dev" or "test" go in a folder."""
        return os.path.join(predictions_dir, f"{self.name}-{split}-output.csv")

    @property
    def valid_predictions(self):
        """The texts that may stand as predictions in a file; None for any finite number."""
        return KINDS[self.kind].valid(self.form)


SENTIMENT = FileFormat(("sentence",), lower_strip, "sentiment", int, 4, "SST")
MOVIES = FileFormat(("sentence",), lower_strip, "sentiment", int, 1, "CFIMDB")
PARAPHRASE = FileFormat(("sentence1", "sentence2"), preprocess_string, "is_duplicate", int, 1, "Quora")
SIMILARITY = FileFormat(("sentence1", "sentence2"), preprocess_string, "similarity", float, 5, "STS")

TASKS = {task.name: task for task in (
    Task("sst", SENTIMENT, "classes", "ids-sst-{}.csv", "id \t Predicted_Sentiment \n", "ce", head="sentiment_head"),
    Task("para", PARAPHRASE, "binary", "quora-{}.csv", "id \t Predicted_Is_Paraphrase \n", "bce",
         head="paraphrase_head"),
    # "Similiary": the leaderboard has accepted exactly these bytes.
    Task("sts", SIMILARITY, "real", "sts-{}.csv", "id \t Predicted_Similiary \n", "mse", metric=pearson,
         overall=lambda correlation: (correlation + 1) / 2, head="similarity_head"),
    Task("cfimdb", MOVIES, "classes", "ids-cfimdb-{}.csv", "id \t Predicted_Sentiment \n", "ce"),
)}
COURSE_TASKS = ("sst", "para", "sts")  # those of Part 2: what multitask_classifier.py trains by default
CLASSIFIER_TASKS = ("sst", "cfimdb")  # those of Part 1: classifier.py trains a model for each


def in_order(names):
    """Return the named tasks, without repetition, in the order in which everything lists them: the table's."""
    return [name for name in TASKS if name in names]


def with_course_tasks(names):
    """Return the tasks that a model has parts for: the course's three, then those of `names` beyond them."""
    return [*COURSE_TASKS, *(name for name in in_order(names) if name not in COURSE_TASKS)]


def overall_score(scores):
    """Return the leaderboard's mean of {task: metric}, in which a correlation r counts as (r + 1) / 2."""
    return sum(TASKS[task].overall(score) for task, score in scores.items()) / len(scores)


def formats():
    """Return the formats of all tasks: what a file may be of by mistake."""
    return [task.form for task in TASKS.values()]


def read_sound(path, form, labelled=True, skip_bad_rows=False):
    """As tables.read_sound, whose message names the task when the file is another's."""
    return tables.read_sound(path, form, labelled, skip_bad_rows, formats())


def read_rows(path, form, labelled=True, skip_bad_rows=False):
    """As tables.read_rows, whose message names the task when the file is another's."""
    return tables.read_rows(path, form, labelled, skip_bad_rows, formats())
