"""Write data/sample/: nine small files in the course's formats, from sentences that were written for this project.

    python -m scripts.make_sample_data [--out data/sample]

The sources are scripts/sample/{sst,quora,sts}.txt, whose headers say how they are read. Their rows come in families: a
pattern whose words or order change, or a sentence and the sentences it is compared with. A family has at most five rows
and stays in one split, so that the dev scores measure reading and not the recall of a pattern.
"""
import csv
import hashlib
import io
import re
from collections import namedtuple
from pathlib import Path

from files.errors import Parser, run_script
from tasks import COURSE_TASKS, SPLITS, TASKS

SOURCES = Path(__file__).parent / "sample"
SAMPLE_DIR = Path(__file__).parent.parent / "data" / "sample"
# SST uses the brackets and quotation marks of the Penn Treebank, with its tokens spaced apart.
TREEBANK = [
    (r'"([^"]*)"', r"`` \1 ''"),
    (r"\.\.\.", r" \g<0> "),
    (r"(?<!\.)([.,:;?!])(?![\d.])", r" \1 "),
    (r"n't\b", r" n't"),
    (r"(?<=\w)('(?:s|re|ve|ll|d|m))\b", r" \1"),
]

# number: the row's place in the source; family: the place of its block, the "template" that it came from
Row = namedtuple("Row", "number family id sentences label")


def digest(*texts):
    """Return 25 hexadecimal digits, as in the course's ids, that depend on nothing but `texts`."""
    return hashlib.sha256("\t".join(texts).encode()).hexdigest()[:25]


def treebank(sentence):
    """Return `sentence` spaced as in SST, with the leading blank that the course's rows have."""
    for pattern, replacement in TREEBANK:
        sentence = re.sub(pattern, replacement, sentence)
    return " " + " ".join(sentence.split())


def source_of(task):
    """Return the name of a task's source, which its ids depend on: sst, quora or sts, as the course names its files."""
    return TASKS[task].files.removeprefix("ids-").removesuffix("-{}.csv")


def source_lines(task):
    """Return the lines of a task's source without its comments; blank lines stay."""
    text = (SOURCES / f"{source_of(task)}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def sentence_rows(task):
    """Return the rows of single texts: one a line, "+" continuing the family of the line above."""
    rows, family = [], -1
    for line in filter(None, source_lines(task)):
        family += not line.startswith("+")
        label, sentence = line.lstrip("+").split(" ", 1)
        sentence = treebank(sentence)
        rows.append(Row(len(rows), family, digest(source_of(task), sentence), (sentence,), int(label)))
    return rows


def pair_rows(task):
    """Return the rows of pairs: the first line of each block with every line below it."""
    rows, first, family = [], None, -1
    for line in source_lines(task):
        if not line:
            first = None
        elif first is None:
            first, family = line, family + 1
        else:
            mark, second = line.split(" ", 1)
            label = {"=": 1.0, "!": 0.0}[mark] if TASKS[task].kind == "binary" else float(mark)
            # A sentence that others share must not always stand first.
            pair = sorted([first, second], key=digest)
            rows.append(Row(len(rows), family, digest(source_of(task), *pair), tuple(pair), label))
    return rows


def task_rows(task):
    """Return all rows of a task, in the order of the source."""
    return pair_rows(task) if TASKS[task].is_pair else sentence_rows(task)


def split_rows(task):
    """Return {split: rows}: whole families dealt out 10 : 5 : 2 to train, dev and test, classes one by one."""
    families, by_class = {}, TASKS[task].kind == "classes"
    for row in task_rows(task):
        families.setdefault(row.family, []).append(row)
    order = sorted(families.values(), key=lambda rows: (rows[0].label if by_class else 0, rows[0].id))
    splits = {split: [] for split in SPLITS}
    for i, rows in enumerate(order):
        splits["test" if i % 17 < 2 else "dev" if i % 17 < 7 else "train"] += rows
    return {split: sorted(rows, key=lambda row: row.id) for split, rows in splits.items()}


def file_text(task, split, rows):
    """Return the content of one file, byte for byte as the course writes such files."""
    sentences, label = [*TASKS[task].form.texts], TASKS[task].form.label
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    if not TASKS[task].is_pair and split == "test":  # the course's file went through pandas twice and has two indices
        writer.writerow(["0", "", "id"] + sentences)
        writer.writerows([i + 1, float(i), row.id, *row.sentences] for i, row in enumerate(rows))
    else:
        writer.writerow(["", "id"] + sentences + [label] * (split != "test"))
        for i, row in enumerate(rows):
            index = row.number if TASKS[task].is_pair else i
            writer.writerow([index, row.id, *row.sentences] + [row.label] * (split != "test"))
    return out.getvalue()


def sample_files():
    """Return {file name: content} of the nine files."""
    return {
        TASKS[task].files.format(SPLITS[split]): file_text(task, split, rows)
        for task in COURSE_TASKS
        for split, rows in split_rows(task).items()
    }


def main():
    parser = Parser(description="Write the demo's sample data.")
    parser.add_argument("--out", type=Path, default=SAMPLE_DIR, help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in sample_files().items():
        (args.out / name).write_text(text, encoding="utf-8", newline="")
        print(f"{args.out / name}: {text.count(chr(10)) - 1} rows")


if __name__ == "__main__":
    run_script(main)
