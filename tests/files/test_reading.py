"""Bad data files: each ends in the right rows, or in one message with the file, the line and what to do."""

import errno
import gzip
import io
import os
import time
import zipfile

import pytest

from files.errors import UserError
from prepare_submit import prediction_ids
from tasks import PARAPHRASE, SENTIMENT, SIMILARITY, read_rows
from tests.helpers.faults import failing

SST = "\tid\tsentence\tsentiment\n0\ts1\ta cat\t3\n1\ts2\ta dog\t4\n2\ts3\tthe film\t0\n"
SST_ROWS = [("a cat", 3, "s1"), ("a dog", 4, "s2"), ("the film", 0, "s3")]
QUORA = "\tid\tsentence1\tsentence2\tis_duplicate\n0\tq1\ta\tb\t1.0\n1\tq2\tc\td\t0.0\n"
STS = "\tid\tsentence1\tsentence2\tsimilarity\n0\tt1\ta\tb\t2.5\n1\tt2\tc\td\t1\n"
STS_TEST = "\tid\tsentence1\tsentence2\n0\tt1\ta\tb\n"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a text or bytes to a file and gives its path."""
    def write_file(content):
        path = tmp_path / "file.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)
    return write_file


@pytest.mark.parametrize("given, content", [
    ("a UTF-8 file with a byte-order mark", "\ufeff" + SST),
    ("the same with the mark before a column that is needed", "\ufeffid" + SST[3:].replace("\n0\t", "\n").replace(
        "\n1\t", "\n").replace("\n2\t", "\n")),
    ("lines that end in CR LF, as on Windows", SST.replace("\n", "\r\n")),
    ("lines that end in CR", SST.replace("\n", "\r")),
    ("no line end after the last row", SST[:-1]),
    ("empty lines between the rows and at the end", SST.replace("\n", "\n\n")),
    ("every cell quoted", "\n".join("\t".join(f'"{c}"' for c in line.split("\t")) for line in SST.split("\n")[:-1])),
    ("columns in another order, and one more", "sentiment\tsource\tsentence\tid\n3\tx\ta cat\ts1\n4\tx\ta dog\ts2\n"
     "0\tx\tthe film\ts3\n"),
    ("ids in upper case and between spaces", SST.replace("s1", " S1 ")),
])
def test_read_as_it_is(given, content, write, record):
    path = write(content)
    assert read_rows(path, SENTIMENT) == SST_ROWS
    assert prediction_ids(path, SENTIMENT) == ["s1", "s2", "s3"]
    record("Data files", given, "read as without", "the three rows")


def test_texts_with_what_must_be_quoted(write, record):
    text = 'two\nlines, a "word" and \u2028 \x85 \x0b'
    path = write(SST.replace("a cat", '"' + text.replace('"', '""') + '"').replace("a dog", '"a\tdog"'))
    assert [row[0] for row in read_rows(path, SENTIMENT)] == [text.strip(), "a\tdog", "the film"]
    record("Data files", "a quoted text with line ends, quotes or tabs in it", "read as Python's csv reads it",
           "the text with its line ends, quotes or tabs")
    assert read_rows(write(SST.replace("a cat", '"good" film, a "so-called"')), SENTIMENT)[0][0] == (
        'good film, a "so-called"')
    record("Data files", "quotes around the first word only, and within a text", "read as Python's csv reads it",
           "the quotes at the beginning are lost, as in the course's reader; the others stay")


def test_empty_texts_are_read_and_counted(write, capsys, record):
    path = write(QUORA.replace("\ta\tb", "\ta\t ").replace("\tc\t", "\t\t"))
    assert read_rows(path, PARAPHRASE) == [("a", "", 1, "q1"), ("", "d", 0, "q2")]
    said = capsys.readouterr().out
    assert "2 with an empty text" in said
    record("Data files", "empty sentences", "read and counted: Quora's own files have one", said, folder=path[:-9])


def test_long_texts(write, record, monkeypatch):
    text = " ".join(["word"] * 2000)
    assert read_rows(write(SST.replace("a cat", text)), SENTIMENT)[0] == (text, 3, "s1")
    record("Data files", "a text of 2,000 tokens", "read whole; cut to --max_length later, check_data counts them",
           "the whole text")
    begun = time.perf_counter()
    error = refused(write(SST.replace("a cat", "long " * 2_000_000)), SENTIMENT)
    seconds = time.perf_counter() - begun
    assert "line 2: a cell has more than 131,072 characters" in error and len(error) < 500 and seconds < 10
    record("Data files", "a line of 10 MB", "refused: no text has 131,072 characters", error, seconds=seconds,
           folder=write("")[:-9])
    path = write(SST.replace("a cat", "long " * 2_000_000))
    assert read_rows(path, SENTIMENT, skip_bad_rows=True) == SST_ROWS[1:]


def refused(path, form, labelled=True):
    """Return the message of read_rows, which does not change with --skip_bad_rows where the whole file is bad."""
    with pytest.raises(UserError) as error:
        read_rows(path, form, labelled)
    assert path in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def zipped(text):
    """Return the bytes of a zip archive with one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("file.csv", text)
    return file.getvalue()


@pytest.mark.parametrize("given, content, form, labelled, words", [
    ("an empty file", "", SENTIMENT, True, ["is empty", "fetch"]),
    ("a file of empty lines", "\n\n\n", SENTIMENT, True, ["is empty", "fetch"]),
    ("a header without rows", SST.split("\n")[0], SENTIMENT, True, ["holds no row", "fetch"]),
    ("no row with a label", QUORA.replace("1.0", "").replace("0.0", " "), PARAPHRASE, True, ["no row with a label"]),
    ("a Quora file as STS", QUORA, SIMILARITY, True, ["line 1", "file of Quora, not of STS", "swapped"]),
    ("an STS file as Quora", STS, PARAPHRASE, True, ["line 1", "file of STS, not of Quora", "swapped"]),
    ("an SST file as Quora", SST, PARAPHRASE, True, ["line 1", "file of SST or CFIMDB, not of Quora", "swapped"]),
    ("a Quora file as SST", QUORA, SENTIMENT, True, ["line 1", "file of Quora, not of SST", "swapped"]),
    ("a labelled Quora file as the test file of STS", QUORA, SIMILARITY, False, ["file of Quora", "swapped"]),
    ("a test file of SST as one of STS", "0\t\tid\tsentence\n1\t0.0\ts1\ta\n", SIMILARITY, False,
     ["line 1", "file of SST or CFIMDB, not of STS", "swapped"]),
    ("a test file as a dev file", STS_TEST, SIMILARITY, True, ["no", "similarity", "test file of STS"]),
    ("a renamed label column", SST.replace("sentiment", "Sentiments"), SENTIMENT, True,
     ["line 1", "rename 'Sentiments' to 'sentiment'"]),
    ("a renamed text column", STS.replace("sentence2", "sentence_2"), SIMILARITY, True,
     ["line 1", "rename 'sentence_2' to 'sentence2'"]),
    ("the id column in capitals", SST.replace("\tid", "\tID"), SENTIMENT, True, ["rename 'ID' to 'id'"]),
    ("a missing column", SST.replace("\tid", "\t"), SENTIMENT, True, ["line 1", "column id", "begins with a line"]),
    ("a column twice", SST.replace("\tid", "id\tid"), SENTIMENT, True, ["line 1", "not one column id"]),
    ("commas in place of tabs", SST.replace("\t", ","), SENTIMENT, True,
     ["line 1", "parted by ',': save it as tab-separated text"]),
    ("semicolons in place of tabs, quoted", "".join(";".join(f'"{cell}"' for cell in line.split("\t")) + "\n"
                                                    for line in SST.splitlines()), SENTIMENT, True,
     ["line 1", "parted by ';': save it as tab-separated text"]),
    ("a web page in place of the file", "<!DOCTYPE html>\n<html>", SENTIMENT, True, ["line 1", "is tab-separated"]),
    ("an open quote in the header", SST.replace("sentence", '"sentence'), SENTIMENT, True, ["line 1", "quote"]),
    ("a file packed with gzip", gzip.compress(SST.encode(), mtime=0), SENTIMENT, True, ["gunzip"]),
    ("a zip archive", zipped(SST), SENTIMENT, True, ["zip archive", "unpack"]),
    ("text in UTF-16", SST.encode("utf-16"), SENTIMENT, True, ["UTF-16", "UTF-8"]),
    ("random bytes", bytes(range(256)) * 9, SENTIMENT, True, ["line 1", "byte 1 is 0x00"]),
])
def test_bad_file(given, content, form, labelled, words, write, record, capsys):
    path = write(content)
    message = refused(path, form, labelled)
    assert all(word in message for word in words), message
    with pytest.raises(UserError) as error:
        read_rows(path, form, labelled, skip_bad_rows=True)
    assert str(error.value) == message and not capsys.readouterr().out
    record("Data files", given, "refused, also with --skip_bad_rows", message, folder=path[:-9])


def test_paths_that_cannot_be_read(write, tmp_path, record):
    message = refused(str(tmp_path), SENTIMENT)
    assert "is a folder" in message and "name the file" in message
    record("Data files", "a folder for a file", "refused", message, folder=tmp_path)
    message = refused(str(tmp_path / "none.csv"), SENTIMENT)
    assert "scripts.download_data" in message
    record("Data files", "a path where nothing is", "refused, naming what fetches the data", message, folder=tmp_path)
    path = write(SST)
    for given, what, number, words in (("a file without read permission", "open", errno.EACCES, "permission"),
                                       ("a disk that fails in the middle of reading", "read", errno.EIO, "disk")):
        with failing(what, number, "*file.csv"):
            message = refused(path, SENTIMENT)
        assert words in message
        record("Data files", given, "refused, naming the file", message, folder=tmp_path)


def test_a_file_too_large_for_data(write, record):
    path = write(SST)
    os.truncate(path, 2**30 + 2**29)  # a hole, which takes no room
    begun = time.perf_counter()
    message = refused(path, SENTIMENT)
    assert "has 1.5 GiB, no data file is that large" in message and time.perf_counter() - begun < 1
    record("Data files", "a file of 1.5 GiB, such as weights", "refused before it is read", message, folder=path[:-9])
    os.truncate(path, len(SST))
    assert read_rows(path, SENTIMENT) == SST_ROWS


def test_labels_of_one_kind_do_not_make_a_swapped_file(write, record):
    path = write(STS.replace("2.5", "0"))
    assert [row[2] for row in read_rows(path, SIMILARITY)] == [0.0, 1.0]
    record("Data files", "an STS file with the labels 0 and 1 only", "read: the columns tell the task", "the rows")
