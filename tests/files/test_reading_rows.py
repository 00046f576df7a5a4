"""Bad rows: each stops with its line and what to do, or is left out, counted and named with --skip_bad_rows."""

import pytest

import datasets
from files import tables
from files.errors import UserError
from prepare_submit import prediction_ids
from tasks import PARAPHRASE, SENTIMENT, SIMILARITY, read_rows

SST = b"\tid\tsentence\tsentiment\n0\ts1\ta cat\t3\n%s1\ts2\ta dog\t4\n2\ts3\tthe \"good\" film\t0\n"
QUORA = b"\tid\tsentence1\tsentence2\tis_duplicate\n0\tq1\ta\tb\t1.0\n%s1\tq2\tc\td\t0.0\n"
STS = b"\tid\tsentence1\tsentence2\tsimilarity\n0\tt1\ta\tb\t2.5\n%s1\tt2\tc\td\t5\n"
TEST = b"\tid\tsentence1\tsentence2\n0\tt1\ta\tb\n%s1\tt2\tc\td\n"
FORMS = {SST: (SENTIMENT, True), QUORA: (PARAPHRASE, True), STS: (SIMILARITY, True), TEST: (SIMILARITY, False)}

BAD_ROWS = [  # given, file, the row (its line is 3), how many rows are lost, sort of row, what the message must hold
    ("a byte that is no UTF-8 (Latin-1)", SST, b"9\ts9\tcaf\xe9\t3\n", 1, "with damaged bytes",
     "byte 9 is 0xe9, no UTF-8; save the file as UTF-8"),
    ("a UTF-8 character cut in two", TEST, b"9\tt9\t\xe2\x82\tb\n", 1, "with damaged bytes", "byte 6 is 0xe2"),
    ("a NUL byte in a text", SST, b"9\ts9\t\xc3\xa9 \0 cat\t3\n", 1, "with damaged bytes", "byte 9 is 0x00, no text"),
    ("a NUL byte in the second line of a quoted text", SST, b"9\ts9\t\"one\ntwo \0\"\t3\n", 1, "with damaged bytes",
     "line 4: byte 5 is 0x00"),
    ("a tab in a text that is not quoted", SST, b"9\ts9\ta\tcat\t3\n", 1, "with too many cells",
     "5 cells where the header has 4 (is there a tab in a text?)"),
    ("a row that is cut off", QUORA, b"9\tq9\ta\n", 1, "with too few cells", "3 cells where the header has 5"),
    ("a row of white space", QUORA, b"  \n", 1, "with too few cells", "1 cells where the header has 5"),
    ("a second header in the middle", SST, b"\tid\tsentence\tsentiment\n", 1, "with a bad label", "'sentiment'"),
    ("a label that is no number", SST, b"9\ts9\ta\tgood\n", 1, "with a bad label", "sentiment is 'good'"),
    ("a label NaN", STS, b"9\tt9\ta\tb\tnan\n", 1, "with a bad label", "similarity is 'nan'"),
    ("a label with a decimal comma", STS, b"9\tt9\ta\tb\t3,5\n", 1, "with a bad label", "a number from 0 to 5"),
    ("a label above its range", SST, b"9\ts9\ta\t5\n", 1, "with a bad label", "a whole number from 0 to 4"),
    ("a label below its range", STS, b"9\tt9\ta\tb\t-0.1\n", 1, "with a bad label", "similarity is '-0.1'"),
    ("a label with an underscore", SST, b"9\ts9\ta\t0_1\n", 1, "with a bad label", "sentiment is '0_1'"),
    ("a label in digits of another script", QUORA, "9\tq9\ta\tb\t\u0661\n".encode(), 1, "with a bad label",
     "is_duplicate is '\u0661'"),
    ("a label with an exponent", STS, b"9\tt9\ta\tb\t1e0\n", 1, "with a bad label", "similarity is '1e0'"),
    ("an infinite label", STS, b"9\tt9\ta\tb\tinf\n", 1, "with a bad label", "similarity is 'inf'"),
    ("a fraction for a class", QUORA, b"9\tq9\ta\tb\t0.5\n", 1, "with a bad label", "a whole number from 0 to 1"),
    ("an id that another row has", QUORA, b"9\tQ1 \ta\tb\t1\n", 1, "with a repeated id",
     "the id 'q1' stands in line 2 already"),
    ("an id with a space in it", SST, b"9\ts 9\ta\t3\n", 1, "with a bad id", "the id is 's 9', but must be one word"),
    ("an empty id", TEST, b"9\t \ta\tb\n", 1, "with a bad id", "the id is ''"),
    ("a quote that is not closed and swallows rows to the end", TEST, b"9\tt9\t\"a\tb\n", 2, "behind an open quote",
     "a quote opens here and swallows the lines up to 4"),
    ("a quote that swallows rows up to the next quote, with the right number of cells", SST,
     b"7\ts7\t\"open\t3\n8\ts8\ta \"b\"\t4\n", 2, "behind an open quote", "swallows the lines up to 4"),
    ("a quote that opens in a row that is cut off, with the right number of cells", SST,
     b"7\ts7\t\"open\n8\ts8\"\t4\n", 2, "behind an open quote", "swallows the lines up to 4"),
    ("a quote that opens before the last cell of a row", TEST, b"9\tt9\ta\t\"b\n", 2, "behind an open quote",
     "swallows the lines up to 4"),
]


@pytest.mark.parametrize("given, file, row, lost, sort, words", BAD_ROWS, ids=[case[0] for case in BAD_ROWS])
def test_bad_row(given, file, row, lost, sort, words, tmp_path, capsys, record):
    form, labelled = FORMS[file]
    path, whole = tmp_path / "file.csv", tmp_path / "whole.csv"
    whole.write_bytes(file % b"")
    rows = read_rows(whole, form, labelled)
    path.write_bytes(file % row)
    capsys.readouterr()

    for read in (lambda: read_rows(path, form, labelled), lambda: prediction_ids(path, form, labelled)):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert message.startswith(f"{path}, line {4 if 'second line' in given else 3}: ") and words in message
        assert "--skip_bad_rows" in message and "\n" not in message and not capsys.readouterr().out

    kept = read_rows(path, form, labelled, skip_bad_rows=True)
    swallowed = lost - row.count(b"\n") if sort == "behind an open quote" else 0  # good rows behind the quote
    assert kept == rows[:1] + rows[1 + swallowed:]
    said = capsys.readouterr()
    assert f"load {len(kept)} data from {path}; {lost} row" in said.out and f"{sort} skipped (line " in said.out
    assert all(part in said.err for part in ("warning", "predictions lack their ids", message.partition(": ")[0]))
    record("Data files", given, "refused with its line; --skip_bad_rows leaves it out, counts it and warns", message,
           folder=tmp_path)


def test_all_bad_rows_are_counted(tmp_path, capsys, record):
    path = tmp_path / "file.csv"
    bad = b"".join(b"9\tu%d\ta\t%d\n" % (i, 4 + i % 2) for i in range(40))
    path.write_bytes(SST % bad + b"9\ts1\ta\t3\n8\tv\ta\t\n")
    with pytest.raises(UserError, match=r"line 4: .*--skip_bad_rows\); 20 more, see `python -m scripts\.check_data"):
        read_rows(path, SENTIMENT)
    rows, report = tables.read_report(path, SENTIMENT)
    assert (len(rows), report.rows, report.skipped, len(report.bad)) == (23, 23, 22, 21)
    assert {sort: len(lines) for sort, lines in report.why.items()} == {
        "with a bad label": 20, "with a repeated id": 1, "without a label": 1}
    assert report.why["without a label"] == [46] and report.why["with a bad label"][:3] == [4, 6, 8]
    read_rows(path, SENTIMENT, skip_bad_rows=True)
    said = capsys.readouterr().out
    assert "20 rows with a bad label skipped (line 4, 6, 8, ...)" in said and said.count("\n") == 1
    record("Data files", "several sorts of bad rows with --skip_bad_rows", "one line: how many of each sort, and where",
           said, folder=tmp_path)


def test_rows_without_a_label(tmp_path, capsys, record):
    path = tmp_path / "file.csv"
    path.write_bytes(QUORA % b"9\tq9\ta\tb\t\n9\tq10\ta\t\t \n9\tq1\ta\tb\t\n")  # whatever their id is
    assert [row[-1] for row in read_rows(path, PARAPHRASE)] == ["q1", "q2"] == prediction_ids(path, PARAPHRASE)
    said = capsys.readouterr()
    assert "3 rows without a label skipped (line 3, 4, 5)" in said.out and not said.err
    record("Data files", "rows without a label", "left out, as the course does, and counted", said.out, folder=tmp_path)


def test_nothing_is_left(tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(SST.split(b"\n")[0] + b"\n0\ts1\ta\t7\n")
    with pytest.raises(UserError, match="holds no row"):
        read_rows(path, SENTIMENT, skip_bad_rows=True)


def test_load_multitask_data_passes_the_choice_on(tmp_path):
    files = []
    for name, file, row in (("sst", SST, b"9\ts9\ta\t7\n"), ("para", QUORA, b"9\tq9\ta\tb\t7\n"),
                            ("sts", STS, b"9\tt9\ta\tb\t7\n")):
        files.append(tmp_path / name)
        files[-1].write_bytes(file % row)
    with pytest.raises(UserError, match="line 3"):
        datasets.load_multitask_data(*files)
    sst, labels, para, sts = datasets.load_multitask_data(*files, split="dev", skip_bad_rows=True)
    assert (len(sst), labels, len(para), len(sts)) == (3, {3: 0, 4: 1, 0: 2}, 2, 2)
