"""Say what the training scripts would read of data files, and what to know of them before training.

    python -m scripts.check_data data
    python -m scripts.check_data my-train.csv my-dev.csv --max_length 128 --pretrained bert-base-uncased

For each file: how many rows, how many skipped and why, the labels, the lengths, texts that stand there more than
once; then, for each two files of one kind, the texts they share (train and dev should share none), and a line of JSON.
Exits with 2 when the training scripts would refuse one of the files.
"""

import argparse
import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files.errors import Parser, UserError, run_script
from files.tables import FileFormat, Report, names_of, read_report, recognise
from tasks import formats

SHOWN = 20  # lines and bad rows of one file


class File(NamedTuple):
    """A file that could be read."""

    path: Path
    rows: list
    form: FileFormat
    labelled: bool
    report: Report


def data_files(paths):
    """Return the files among `paths` and, sorted, the .csv and .tsv files of the folders among them."""
    files = []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in (".csv", ".tsv") and file.is_file())
            if not found:
                raise UserError(f"no .csv or .tsv file in the folder {path}; name the data files or their folder")
        files += [file for file in found if file not in files]
    return files


def some(items, between):
    """Return the first few of `items` as text, with how many more there are."""
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return between.join([*map(str, items[:SHOWN]), *more])


def texts_of(rows, form):
    """Return each row's texts, a tuple, those of a pair in alphabetical order."""
    return [tuple(sorted(row[: len(form.texts)])) for row in rows]


def lengths_of(rows, form, tokenizer):
    """Return each row's number of tokens in one sequence, (N,); without a tokenizer the number of words."""
    texts = [row[: len(form.texts)] for row in rows]
    if tokenizer is None:
        return np.array([len(text.split()) for row in texts for text in row]).reshape(len(rows), -1).sum(1)
    from engine.token_cache import tokenize

    index = {}
    which = np.array([index.setdefault(text, len(index)) for row in texts for text in row])
    tokens = tokenize(list(index), tokenizer).lengths()  # without [CLS] and [SEP]
    return tokens[which].reshape(len(rows), -1).sum(1) + len(form.texts) + 1


def balance(labels, form):
    """Return how often each label occurs; of real numbers, how often each whole step up to them."""
    real = form.type is float
    steps = Counter(int(label) if real else label for label in labels)
    shares = [f"{step}{'+' * real}: {count} ({count / len(labels):.1%})" for step, count in sorted(steps.items())]
    return ", ".join(shares) + (f"; mean {np.mean(labels):.2f}" if real else "")


def repeats(rows, form, labelled):
    """Return (texts or pairs that stand in several rows, the rows, of them in both orders, with several labels)."""
    groups = {}
    for row, key in zip(rows, texts_of(rows, form), strict=True):
        groups.setdefault(key, []).append(row)
    groups = [group for group in groups.values() if len(group) > 1]
    orders = sum(len({row[: len(form.texts)] for row in group}) > 1 for group in groups)
    labels = sum(len({row[-2] for row in group}) > 1 for group in groups) if labelled else 0
    return len(groups), sum(map(len, groups)), orders, labels


def show(path, max_length, tokenizer):
    """Print what is to be known of one file; return its File, or None when none of it can be read."""
    print(f"\n{path}")
    try:
        form, labelled = recognise(path, formats())
        rows, report = read_report(path, form, labelled, formats())
    except UserError as error:
        print(f"  refused   {error}")
        return None
    pairs = len(form.texts) == 2
    print(f"  kind      {names_of(form, formats(), labelled)}, {'with' if labelled else 'without'} labels")
    print(f"  rows      {report.rows} read, {report.skipped} skipped, {report.empty} with an empty text")
    for sort, lines in report.why.items():
        print(f"  skipped   {len(lines)} {sort}, line {some(lines, ', ')}")
    if report.bad:
        print(f"  refused   without --skip_bad_rows: {some(report.bad, chr(10) + ' ' * 12)}")
    elif report.refusal():
        print(f"  refused   {report.refusal()}")
    if not rows:
        return None
    if labelled:
        print(f"  labels    {balance([row[-2] for row in rows], form)}")
    lengths = lengths_of(rows, form, tokenizer)
    least, half, most, nearly_all, longest = np.quantile(lengths, (0, 0.5, 0.9, 0.99, 1), method="inverted_cdf")
    units = "words" if tokenizer is None else "tokens"
    print(f"  {units:9} {least} to {longest}; half of the rows have up to {half}, 90% {most}, 99% {nearly_all}; "
          f"{(lengths > max_length).sum()} have more than {max_length} {units}, and will be cut")
    many, among, orders, labels = repeats(rows, form, labelled)
    print(f"  repeated  {many} {'pairs' if pairs else 'texts'} stand in {among} rows"
          + (f"; {labels} with several labels" if labelled else "") + (f"; {orders} in both orders" if pairs else ""))
    return File(path, rows, form, labelled, report)


def leakage(files):
    """Print, for each two files of one kind, the rows of the smaller whose texts the larger has too; return a list.

    Files are of one kind when they have the same columns; one without labels may be of any kind with its texts.
    """
    shared = []
    for pair in combinations(files, 2):
        small, large = sorted(pair, key=lambda file: len(file.rows))
        form = small.form
        if form.texts != large.form.texts or small.labelled and large.labelled and form is not large.form:
            continue
        keys, texts = set(texts_of(large.rows, form)), {row[: len(form.texts)] for row in large.rows}
        either = sum(key in keys for key in texts_of(small.rows, form))
        same = sum(row[: len(form.texts)] in texts for row in small.rows)
        if either:
            orders = f", {same} of them in the same order" if len(form.texts) == 2 else ""
            print(f"  {either} of the {len(small.rows)} rows of {small.path} stand in {large.path}{orders}")
            shared.append({"file": str(small.path), "in": str(large.path), "rows": either, "same_order": same})
    if not shared:
        print("  none")
    return shared


def main(argv=None):
    """Check the files; raises UserError when some of them would be refused."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="data files, or folders of them")
    parser.add_argument("--max_length", type=int, default=512, help="count the rows that are longer (default: 512)")
    parser.add_argument("--pretrained", help="count the tokens of this model's tokenizer, not words")
    args = parser.parse_args(argv)
    if args.max_length < 1:
        raise UserError(f"--max_length is {args.max_length}, but must be at least 1")
    tokenizer = None
    if args.pretrained:
        from datasets import load_tokenizer
        from files.downloads import default_cache_dir

        tokenizer = load_tokenizer(args.pretrained, default_cache_dir())
    found = {path: show(path, args.max_length, tokenizer) for path in data_files(args.paths)}
    files = [file for file in found.values() if file]
    refused = [str(path) for path, file in found.items() if not file or file.report.refusal()]
    print("\nshared by two files")
    shared = leakage(files)
    why = {str(file.path): {sort: len(lines) for sort, lines in file.report.why.items()} for file in files}
    print(json.dumps({"rows": {str(file.path): len(file.rows) for file in files}, "why": why, "refused": refused,
                      "shared": shared}))
    if refused:
        raise UserError(f"{len(refused)} of {len(found)} files would be refused, see above: {', '.join(refused)}")


if __name__ == "__main__":
    run_script(main)
