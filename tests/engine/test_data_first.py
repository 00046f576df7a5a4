"""What is wrong with any data file of a run is found before the run has a folder: the test files, both data sets."""

import sys
from pathlib import Path

import pytest

import classifier
import multitask_classifier
from datasets import load_multitask_data, require_labelled
from tests.helpers.fixtures_tiny import course_rows, write_course_file, write_course_files
from tests.helpers.refusals import ended, tree

BAD = [  # given, script, flags, the file with the mistake, what the message holds
    ("a test file with semicolons for tabs", multitask_classifier, ("--tasks", "sts"), "sts-test-student.csv",
     "parted by ';'"),
    ("a test file of the second data set of classifier.py", classifier, (), "ids-cfimdb-test-student.csv",
     "parted by ';'"),
    ("a training file of the second data set of classifier.py", classifier, (), "ids-cfimdb-train.csv",
     "parted by ';'"),
]


def run(module, flags, monkeypatch, capsys):
    """Run a script for one step; return its error."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--max_steps", "1", *flags])
    return ended(module.main, capsys)


@pytest.mark.parametrize("given, module, flags, name, words", BAD, ids=[case[0] for case in BAD])
def test_a_bad_file(given, module, flags, name, words, course_folder, monkeypatch, capsys, record):
    path = course_folder / "data" / name
    path.write_text(path.read_text().replace("\t", ";"))
    before = tree(course_folder)
    said = run(module, flags, monkeypatch, capsys)
    assert f"{Path('data') / name}, line 1" in said and words in said and tree(course_folder) == before
    record("Data files", given, "refused before anything is trained or written", said)


def test_sst_and_cfimdb_swapped_in_the_second_data_set(course_folder, monkeypatch, capsys, record):
    data = course_folder / "data"
    data.joinpath("ids-cfimdb-dev.csv").write_bytes(data.joinpath("ids-sst-dev.csv").read_bytes())
    before = tree(course_folder)
    said = run(classifier, (), monkeypatch, capsys)
    assert "cfimdb-train.csv has 2 different labels, which must be 0 to 1, and there or in" in said
    assert "stands 2, 3, 4: add rows" in said
    assert said.endswith("were two files swapped?") and tree(course_folder) == before
    record("Data files", "an SST file in the place of CFIMDB's dev file", "refused before anything is trained", said)


def test_a_cfimdb_file_as_sst_is_named(tmp_path, monkeypatch, capsys, record):
    write_course_files(tmp_path / "data", rows=20)
    for name in ("ids-sst-train.csv", "ids-sst-dev.csv"):
        rows = course_rows(name.replace("sst", "cfimdb"), 20)
        write_course_file(tmp_path / "data" / name, rows)
    path = str(tmp_path / "data" / "ids-sst-train.csv")
    load_multitask_data(path, None, None)
    said = capsys.readouterr().err
    assert said == f"warning: the labels of {path} are 0 and 1 alone, and SST's are 0 to 4: is this a file of CFIMDB?\n"
    record("Data files", "a CFIMDB file as SST's", "read, with a warning: an SST of two labels may be meant", said,
           folder=tmp_path)
    args = classifier.complete(classifier.get_parser().parse_args(["--data_dir", str(tmp_path / "data")]))
    require_labelled(args.data_set, *classifier.files_of(args))
    assert capsys.readouterr().err == said + said.replace("train", "dev")

    write_course_file(tmp_path / "data" / "ids-sst-train.csv", course_rows("ids-cfimdb-train.csv", 19))  # chance
    load_multitask_data(path, None, None)
    for name in ("ids-cfimdb-train.csv", "ids-cfimdb-dev.csv"):
        classifier.load_data(str(tmp_path / "data" / name))
    load_multitask_data(None, None, None)
    load_multitask_data(str(tmp_path / "data" / "ids-sst-test-student.csv"), None, None, split="test")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("module, flags", [
    (multitask_classifier, ("--sst_dev", "./data/ids-sst-train.csv")), (classifier, ())])
def test_one_file_as_two(module, flags, course_folder, monkeypatch, capsys, record):
    if not flags:
        dev = course_folder / "data" / "ids-cfimdb-dev.csv"
        dev.unlink()
        dev.symlink_to("ids-cfimdb-train.csv")
    before = tree(course_folder)
    said = run(module, flags, monkeypatch, capsys)
    assert "are one file" in said and "-train.csv and " in said and tree(course_folder) == before
    record("Command line", "one file for training and dev" + ", by a link" * (not flags), "one error that names both",
           said)
