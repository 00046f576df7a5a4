"""Files to rows: one set of rules for the course's files, and a report of what was read.

Rows are plain tuples, as the course has them: (sentence, label, id) and (sentence1, sentence2, label,
id); the rows of a test file lack the label.
"""

import csv
import os
from collections.abc import Callable
from typing import NamedTuple

from files import UserError


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
