"""scripts/check_data.py: what it says of good, bad and leaking files, and of the course's own."""

import json

import pytest

from files.errors import UserError, run_script
from scripts import check_data

SST = "\tid\tsentence\tsentiment\n0\ts1\tA good film\t3\n1\ts2\ta dog\t4\n2\ts3\ta Dog \t0\n"
STS = ("\tid\tsentence1\tsentence2\tsimilarity\n0\tt1\ta cat\ta dog\t2.5\n1\tt2\ta dog\ta cat\t5\n2\tt3\tx\ty\t0\n"
       "3\tt4\tx\tz\t1.5\n4\tt5\t\tz\t3\n")
STS_TEST = "\tid\tsentence1\tsentence2\n0\tu1\ta cat\ta dog\n1\tu2\ty\tx\n2\tu3\tn\to\n"


def check(capsys, *argv):
    """Return (exit code, what was printed, the JSON line, the error) of a run of the script."""
    code = 0
    try:
        run_script(lambda: check_data.main([str(word) for word in argv]))
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    lines = said.out.splitlines()
    return code, said.out, json.loads(lines[-1]) if lines else None, said.err


@pytest.fixture
def folder(tmp_path):
    """A folder with sound files, and one that is no data file."""
    for name, text in (("sst.csv", SST), ("sts-train.csv", STS), ("sts-test.tsv", STS_TEST), ("notes.txt", "x")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_sound_files(folder, capsys, record):
    code, said, found, error = check(capsys, folder, folder / "sst.csv", "--max_length", "3")
    assert code == 0 and not error
    assert found["rows"] == {str(folder / name): n for name, n in (
        ("sst.csv", 3), ("sts-test.tsv", 3), ("sts-train.csv", 5))}
    sst, test, train, shared = said.split("\n\n")
    for part, lines in (
        (sst, ("SST or CFIMDB, with labels", "3 read, 0 skipped", "0: 1 (33.3%), 3: 1 (33.3%), 4: 1 (33.3%)",
               "2 to 3; half of the rows have up to 2, 90% 3", "1 texts stand in 2 rows; 1 with several labels\n")),
        (test, ("Quora or STS, without labels", "2 to 4", "1 have more than 3 words", "0 pairs stand in 0 rows")),
        (train, ("STS, with labels", "5 read, 0 skipped, 1 with an empty text", "0+: 1 (20.0%), 1+: 1 (20.0%)",
                 "5+: 1 (20.0%); mean 2.40", "1 to 4", "1 pairs stand in 2 rows; 1 with several labels; 1 in both")),
    ):
        assert all(line in part + "\n" for line in lines), part
    assert f"2 of the 3 rows of {folder / 'sts-test.tsv'} stand in {folder / 'sts-train.csv'}, 1 of them in" in shared
    assert found["shared"] == [{"file": str(folder / "sts-test.tsv"), "in": str(folder / "sts-train.csv"), "rows": 2,
                                "same_order": 1}]
    assert not found["refused"]
    record("Data files", "check_data: a test file that shares pairs with the training file",
           "each shared pair counted, in either order", shared.splitlines()[1].strip(), folder=folder)


def test_bad_files_are_listed_and_end_in_2(folder, capsys, record):
    bad = "".join(f"9\tb{i}\tx\t7\n" for i in range(30))
    (folder / "bad.csv").write_text(SST + bad + "9\ts1\tx\t1\n9\tno\tx\t\n")
    (folder / "worse.csv").write_text(SST.replace("sentiment", "sentimnt"))
    (folder / "none.csv").write_text(SST.split("\n")[0])
    code, said, found, error = check(capsys, folder)
    assert code == 2 and found["refused"] == [str(folder / name) for name in ("bad.csv", "none.csv", "worse.csv")]
    assert "3 of 6 files would be refused" in error and str(folder / "worse.csv") in error
    assert "rename 'sentimnt' to 'sentiment'" in said and "holds no row" in said
    assert "3 read, 32 skipped" in said and "30 with a bad label, line 5, 6" in said and "1 without a label" in said
    listed = [line for line in said.splitlines() if "but must be" in line or "stands in line" in line]
    assert len(listed) == 20 and "and 11 more" in said
    assert found["why"][str(folder / "bad.csv")] == {
        "with a bad label": 30, "with a repeated id": 1, "without a label": 1}
    record("Data files", "check_data: files that training would refuse", "all bad rows listed, exit code 2", error,
           folder=folder)


@pytest.mark.parametrize("argv, words", [
    (("FOLDER/nowhere",), "no .csv or .tsv"), (("FOLDER/sst.csv", "--max_length", "0"), "at least 1"),
    (("FOLDER/nothing.csv",), "1 of 1 files would be refused")])
def test_mistakes(argv, words, folder, capsys):
    (folder / "nowhere").mkdir()
    code, _, _, error = check(capsys, *(word.replace("FOLDER", str(folder)) for word in argv))
    assert code == 2 and words in error and "Traceback" not in error


def test_tokens(folder, tiny_bert, capsys):
    long = folder / "long.csv"
    long.write_text(SST.replace("a dog", "cat " * 511) + "3\ts4\t" + "cat " * 510 + "\t1\n")
    code, said, *_ = check(capsys, long, "--pretrained", tiny_bert)
    assert code == 0 and "tokens    4 to 513;" in said and "; 1 have more than 512 tokens" in said
    code, said, *_ = check(capsys, folder / "sts-train.csv", "--pretrained", tiny_bert)
    assert "tokens    4 to 7;" in said


def test_the_courses_files(course_dir, capsys, record):
    code, said, found, _ = check(capsys, course_dir)
    assert code == 0
    name = {str(path): path.name for path in course_dir.glob("*.csv")}
    assert {name[file]: why for file, why in found["why"].items() if why} == {"quora-dev.csv": {"without a label": 2}}
    assert ", line 2577, 14222" in said
    shared = {(name[each["file"]], name[each["in"]]): each["rows"] for each in found["shared"]}
    assert shared["sts-dev.csv", "sts-train.csv"] == 16 and shared["ids-sst-dev.csv", "ids-sst-train.csv"] == 2
    record("Data files", "check_data: the course's files", "known: 2 Quora dev rows without a label; 16 STS dev pairs "
           "and 2 SST dev sentences in the training files", "these, and nothing refused")


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="no .csv or .tsv file"):
        check_data.data_files([tmp_path])
