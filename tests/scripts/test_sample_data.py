"""data/sample: made by its script, in the course's formats, with honest splits."""
import csv
import re
from collections import Counter

import pytest

from scripts import make_sample_data
from scripts.make_sample_data import SAMPLE_DIR, SPLITS, sample_files, split_rows, task_rows, treebank
from tasks import COURSE_TASKS, TASKS

SIZES = {"train": (250, 400), "dev": (140, 200), "test": (50, 90)}  # rows a task


def normalise(sentence):
    return " ".join(re.findall(r"\w+", sentence.lower()))


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))


def test_files_are_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_sample_data", "--out", str(tmp_path)])
    make_sample_data.main()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in SAMPLE_DIR.iterdir()}
    assert len(written) == 9 and sum(map(len, written.values())) < 300_000


@pytest.mark.parametrize("name, header", [
    ("ids-sst-train.csv", "\tid\tsentence\tsentiment"),
    ("ids-sst-dev.csv", "\tid\tsentence\tsentiment"),
    ("ids-sst-test-student.csv", "0\t\tid\tsentence"),
    ("quora-train.csv", "\tid\tsentence1\tsentence2\tis_duplicate"),
    ("quora-dev.csv", "\tid\tsentence1\tsentence2\tis_duplicate"),
    ("quora-test-student.csv", "\tid\tsentence1\tsentence2"),
    ("sts-train.csv", "\tid\tsentence1\tsentence2\tsimilarity"),
    ("sts-dev.csv", "\tid\tsentence1\tsentence2\tsimilarity"),
    ("sts-test-student.csv", "\tid\tsentence1\tsentence2"),
])
def test_file_format(name, header):
    text = (SAMPLE_DIR / name).read_bytes().decode("utf-8")
    assert text.startswith(header + "\n") and text.endswith("\n") and "\r" not in text
    rows = read(SAMPLE_DIR / name)
    assert {len(row) for row in rows} == {header.count("\t") + 1}
    column = rows[0].index("id")
    assert all(re.fullmatch("[0-9a-f]{25}", row[column]) for row in rows[1:])
    assert all(int(row[0]) >= 0 for row in rows[1:])
    assert all(cell.strip() for row in rows[1:] for cell in row)
    if "test" not in name:
        label = {"ids": "[0-4]", "quo": r"[01]\.0", "sts": r"[0-5]\.\d"}[name[:3]]
        assert all(re.fullmatch(label, row[-1]) and float(row[-1]) <= 5 for row in rows[1:])


def test_sst_test_file_has_two_indices():
    rows = read(SAMPLE_DIR / "ids-sst-test-student.csv")[1:]
    assert [row[:2] for row in rows[:3]] == [["1", "0.0"], ["2", "1.0"], ["3", "2.0"]]
    assert all(row[3].startswith(" ") for row in rows)


def test_treebank_spacing():
    assert treebank('It isn\'t film; it\'s 1.5 hours of "art".') == " It is n't film ; it 's 1.5 hours of `` art '' ."
    assert treebank("I can't wait... really, 5,000 times!") == " I ca n't wait ... really , 5,000 times !"


@pytest.mark.parametrize("task", COURSE_TASKS)
def test_splits_are_whole_and_apart(task):
    splits = split_rows(task)
    rows = [row for split in SPLITS for row in splits[split]]
    assert sorted(rows) == sorted(task_rows(task))
    assert len({row.id for row in rows}) == len(rows)
    for split, (least, most) in SIZES.items():
        assert least <= len(splits[split]) <= most
        column = 3 if (task, split) == ("sst", "test") else 2
        written = [tuple(row[column:][:len(splits[split][0].sentences)])
                   for row in read(TASKS[task].data_file(SAMPLE_DIR, split))[1:]]
        assert written == [row.sentences for row in splits[split]]
    homes = {}
    for split in SPLITS:
        for row in splits[split]:
            for sentence in row.sentences:
                homes.setdefault(normalise(sentence), set()).add(split)
    assert [sentence for sentence, home in homes.items() if len(home) > 1] == []


def test_ids_are_unique_over_all_files():
    ids = [row.id for task in COURSE_TASKS for row in task_rows(task)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("task", COURSE_TASKS)
def test_families_have_at_most_five_rows_and_one_split(task):
    splits = split_rows(task)
    assert max(Counter(row.family for row in task_rows(task)).values()) <= 5
    families = [{row.family for row in splits[split]} for split in SPLITS]
    assert sum(map(len, families)) == len(set.union(*families))


def test_no_pattern_hides_behind_several_families():
    """Not more than five sentences of a task share all but two of their words, position by position."""
    for task in COURSE_TASKS:
        sentences = sorted({normalise(sentence) for row in task_rows(task) for sentence in row.sentences})
        words = [sentence.split() for sentence in sentences]
        for a in words:
            alike = [b for b in words if len(a) == len(b) > 4 and sum(x != y for x, y in zip(a, b)) <= 2]
            assert len(alike) <= 5, alike


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced(split):
    sst, quora, sts = (split_rows(task)[split] for task in COURSE_TASKS)
    assert all(0.1 < count / len(sst) < 0.3 for count in Counter(row.label for row in sst).values())
    assert 0.4 < sum(row.label for row in quora) / len(quora) < 0.55
    fifths = Counter(min(4, int(row.label)) for row in sts)
    assert len(fifths) == 5 and all(0.05 < count / len(sts) < 0.35 for count in fifths.values())


def test_no_row_stands_in_the_course_data(course_dir):
    ours = {tuple(sorted(map(normalise, row.sentences))) for task in COURSE_TASKS for row in task_rows(task)}
    for path in course_dir.glob("*.csv"):
        columns = 2 if path.name.startswith(("quora", "sts")) else 1
        rows = read(path)
        first = rows[0].index("sentence1" if columns == 2 else "sentence")
        theirs = {tuple(sorted(map(normalise, row[first:first + columns]))) for row in rows[1:]}
        assert ours.isdisjoint(theirs), path.name


def test_no_sentence_stands_in_the_course_data(course_dir):
    """Short questions occur to everybody, so this asks for sentences of eight words or more."""
    ours = {normalise(sentence) for task in COURSE_TASKS for row in task_rows(task) for sentence in row.sentences}
    theirs = {normalise(cell) for path in course_dir.glob("*.csv") for row in read(path) for cell in row}
    assert {sentence for sentence in ours & theirs if sentence.count(" ") >= 7} == set()


def test_sample_files_lists_nine_names():
    assert set(sample_files()) == {path.name for path in SAMPLE_DIR.iterdir()}
