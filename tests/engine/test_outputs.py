"""Where a run writes: each place is tried before any work, and none takes the place of a file that is read."""

import errno
import os
import signal
from pathlib import Path

import pytest

from engine.run_folder import Run
from files.errors import UserError
from files.writing import require_writable
from tests.helpers.faults import failing
from tests.helpers.refusals import ONE_ERROR, refusal, tree  # noqa: F401

PLACES = [  # given, flags, what the message holds; `file` is a file and `folder` a folder
    ("--filepath that is a folder", "--filepath folder", ["folder cannot be written (Is a directory): it is a folder"]),
    ("--filepath below a file", "--filepath file/best.pt", ["file/best.pt, file/best.json cannot be written (Not a"]),
    ("--run_dir that is a file", "--run_dir file", ["file/diverged.json cannot be written (Not a directory)"]),
    ("--run_dir below a file", "--run_dir file/a/b", ["file/a/b/diverged.json cannot be written (Not a dir"]),
    ("--predictions_dir that is a file", "--predictions_dir file", ["file/sts-test-output.csv, file/weights.json can"]),
    ("a folder in the place of a prediction file", "--sts_test_out folder", ["folder cannot be written (Is a dir"]),
    ("a file name that is too long", f"--filepath {'a' * 250}.pt", ["(File name too long): give it a shorter name"]),
    ("two prediction files in one place", "--sst_dev_out a.csv --sts_dev_out ./a.csv",
     ["a.csv is where two different files of the run would go"]),
    ("--filepath in the place of the run's last.pt", "--run_dir r --filepath r/last.pt", ["r/last.pt is where two"]),
    ("--filepath whose record would be the run's args.json", "--run_dir r --filepath r/args.pt",
     ["r/args.json is where two different files"]),
    ("predictions in the place of a data file", "--sst_dev_out data/ids-sst-dev.csv",
     ["data/ids-sst-dev.csv would be overwritten, and the run reads it"]),
    ("predictions by a link to a data file", "--sst_dev_out link", ["link would be overwritten"]),
    ("--filepath in the place of the pretrained weights", "--pretrained bert --filepath bert/model.safetensors",
     ["bert/model.safetensors would be overwritten"]),
    ("--pretrained by ~ and --filepath in its place", "--pretrained=~/bert --filepath bert/model.safetensors",
     ["bert/model.safetensors would be overwritten"]),
    ("--run_dir that is the data folder", "--run_dir data", ["--run_dir data holds", "name a folder of its own"]),
    ("--run_dir that is the current folder", "--run_dir .", ["--run_dir . holds"]),
]


@pytest.mark.parametrize("given, flags, words", PLACES, ids=[case[0] for case in PLACES])
def test_places_that_will_not_do(given, flags, words, refusal, record, course_folder, monkeypatch):  # noqa: F811
    Path("file").write_text("as it was")
    Path("folder").mkdir()
    Path("bert").mkdir()
    Path("bert/model.safetensors").write_text("weights")
    Path("link").symlink_to("data/ids-sst-dev.csv")
    monkeypatch.setenv("HOME", str(course_folder))
    said = refusal("multitask", flags)
    assert all(word in said for word in words), said
    assert said.count("cannot be written") <= 1 and "name one that is there" not in said
    record("Output files", given, ONE_ERROR, said.replace("a" * 240, "aaa..."), folder=course_folder)


FAULTS = [
    ("a folder of predictions that may not be written", "open", errno.EACCES, "*/predictions/*", "change its permissi"),
    ("a run's folder on a read-only disk", "open", errno.EROFS, "*/runs/*", "name another place"),
    ("a disk without a byte left", "write", errno.ENOSPC, "*/runs/*", "make room there"),
    ("a disk that fails", "write", errno.EIO, "*/runs/*", "the disk or the way to it fails"),
]


@pytest.mark.parametrize("given, what, number, match, words", FAULTS, ids=[case[0] for case in FAULTS])
def test_folders_that_fail(given, what, number, match, words, refusal, record, course_folder):  # noqa: F811
    for folder in ("predictions", "runs"):
        Path(folder).mkdir()
    with failing(what, number, match):
        said = refusal("multitask", "--run_dir runs/one")
    assert "cannot be written" in said and words in said
    record("Output files", given, ONE_ERROR, said, folder=course_folder)


def test_classifier_tries_the_places_of_both_data_sets(refusal, record, course_folder):  # noqa: F811
    Path("runs/cfimdb").mkdir(parents=True)
    Path("runs/cfimdb/best.pt").mkdir()
    said = refusal("classifier", "--run_dir runs")
    assert "runs/cfimdb/best.pt cannot be written" in said and "sst" not in said
    record("Output files", "a place that only the second of classifier.py's runs would write to", ONE_ERROR, said,
           folder=course_folder)


def test_trying_leaves_nothing_behind(tmp_path):
    (tmp_path / "old.pt").write_text("old")
    before = tree(tmp_path)
    require_writable([tmp_path / "new.pt", tmp_path / "a" / "b" / "c.pt", tmp_path / "old.pt", "/dev/null"])
    assert tree(tmp_path) == before
    with pytest.raises(UserError, match="old.pt/x cannot.*; .*/dev/full cannot be written .No space"):
        require_writable([tmp_path / "old.pt" / "x", "/dev/full"])


def test_a_folder_where_nothing_can_be_made(refusal, record):  # noqa: F811
    with failing("open", errno.ENOENT, "*/predictions/*"):  # as in /proc
        Path("predictions").mkdir()
        said = refusal("multitask", "--tasks sts")
    assert said.endswith("predictions/weights.json cannot be written (No such file or directory): name another path")
    record("Output files", "a folder in which the system makes no file, as /proc", "one error with one remedy", said)


@pytest.fixture
def other_process():
    """A function that lets a second process train in a folder until `end(signal)` of what it returns."""
    processes = []

    def start(folder):
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            with Run(folder).locked():
                os.write(tell, b"!")
                signal.pause()
        assert os.read(ready, 1) == b"!"
        processes.append(pid)

    def end():
        while processes:
            os.kill(processes[-1], signal.SIGKILL)
            os.waitpid(processes.pop(), 0)

    start.end = end
    yield start
    end()


def test_a_folder_in_use_and_one_whose_run_died(other_process, refusal, record, course_folder):  # noqa: F811
    other_process("runs/one")
    said = refusal("multitask", "--run_dir runs/one")
    assert said == "another process trains in runs/one right now; wait for it, or name another --run_dir"
    record("Output files", "a run's folder in which another process trains", ONE_ERROR, said)
    other_process.end()
    assert Path("runs/one.lock").exists()
    Run("runs/one").require_free()
    record("Output files", "the lock of a run that was killed", "it does not count", "the folder is free")
