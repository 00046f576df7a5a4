"""prepare_submit: every problem in one list, and a zip that is whole or that of before."""

import errno
import time
import zipfile

import pytest

import prepare_submit
from tests.course.test_prepare_submit import HEADERS, IDS, folder, refusal  # noqa: F401
from tests.helpers.faults import failing
from tests.helpers.refusals import ended

ONE_LIST = "a line of the one list of problems; no zip"


def spoil(path, kind):
    """Make of a prediction file what `kind` says."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.write(kind if isinstance(kind, bytes) else b"")
            file.truncate(len(kind) if isinstance(kind, bytes) else kind)


FILES = [
    ("a folder in the place of a prediction file to hand in", "folder", "Is a directory; it is a folder, name a file"),
    ("a prediction file of 100 MiB", 100 * 2**20, "more than 64 MiB, which is no file of a submission"),
    ("a prediction file of NUL bytes", 4096, "the header must be"),
    ("a prediction of a million digits", HEADERS["sts"] + f"a1 , {'9' * 10**6}x \n".encode(),
     "other than a finite number: line 2 '999"),
    ("a prediction file that was cut off", HEADERS["sts"] + b"a1 , 0.5 \nb2 ,", "the last line does not end"),
]


@pytest.mark.parametrize("given, kind, words", FILES, ids=[case[0] for case in FILES])
def test_damaged_prediction_files(given, kind, words, folder, record):  # noqa: F811
    spoil(folder / "predictions" / "sts-dev-output.csv", kind)
    start = time.perf_counter()
    said = refusal()
    seconds = time.perf_counter() - start
    assert words in said and said.count("sts-dev-output.csv") == said.count("\n  - ") and seconds < 10
    record("Output files", given, ONE_LIST, said.replace("9" * 30, "999..."), folder=folder)


@pytest.mark.parametrize("given, what, number, match", [
    ("a prediction file that may not be opened", "open", errno.EACCES, "*/sst-dev-output.csv"),
    ("a data file that may not be opened", "open", errno.EACCES, "*/quora-dev.csv"),
    ("a code file that its disk cannot read", "read", errno.EIO, "*/project/bert.py"),
    ("a folder for the zip that may not be written", "open", errno.EACCES, "*/*submission.zip*"),
])
def test_files_that_fail(given, what, number, match, folder, capsys, record):  # noqa: F811
    (folder / "predictions" / "para-dev-output.csv").unlink()
    with failing(what, number, match):
        said = refusal()
    assert match.strip("*/").split("/")[-1] in said and "para-dev-output.csv: missing" in said
    assert not list(folder.glob("*.zip"))
    [line] = [line for line in said.splitlines() if "missing" not in line and line.startswith("  - ")]
    record("Output files", given, ONE_LIST, line, folder=folder)


@pytest.mark.parametrize("given, out, words", [
    ("--out in the place of a prediction file", "predictions/sst-dev-output.csv", "take the place of a file"),
    ("--out in the place of a data file", "data/sts-dev.csv", "take the place of a file"),
    ("--out that is a folder", "predictions", "predictions cannot be written (Is a directory)"),
    ("--out below a file", "data/sts-dev.csv/a.zip", "cannot be written (Not a directory)"),
])
def test_places_of_the_zip(given, out, words, folder, record):  # noqa: F811
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said = refusal("--out", out)
    assert words in said and before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record("Output files", given, ONE_LIST, said, folder=folder)


def test_the_zip_of_before_stays_when_the_disk_is_full(folder, capsys, record):  # noqa: F811
    prepare_submit.main([])
    path = folder / prepare_submit.ZIP_NAME
    before = path.read_bytes()
    (folder / "project" / "bert.py").write_text("# changed\n")
    with failing("fsync", errno.ENOSPC, "*submission.zip*"):
        said = ended(lambda: prepare_submit.main([]), capsys)
    assert path.name in said and "No space left on device; make room there" in said
    assert path.read_bytes() == before and zipfile.ZipFile(path).testzip() is None and not list(folder.glob(".*"))
    record("Output files", "the disk is full when the zip is written", "one error; the zip of before is whole", said,
           folder=folder)


@pytest.mark.parametrize("given, content", [("a damaged weights.json when the zip is made", b"{\xff"),
                                            ("a weights.json that is a folder", None)])
def test_a_record_that_cannot_be_read(given, content, folder, capsys, record):  # noqa: F811
    record_path = folder / "predictions" / "weights.json"
    record_path.mkdir() if content is None else record_path.write_bytes(content)
    prepare_submit.main([])
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and "weights.json" in said and said.count("\n") == 1
    assert zipfile.ZipFile(folder / prepare_submit.ZIP_NAME).testzip() is None
    record("Output files", given, "a warning; the zip is made, as it does not hold that record", said, folder=folder)
