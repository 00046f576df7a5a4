"""Fuzzed data files: rows or a UserError, every row read or counted, and what csv writes is read back."""

import contextlib
import csv
import io

import pytest
from hypothesis import strategies as st

from files import tables
from files.errors import UserError
from prepare_submit import prediction_ids
from tasks import PARAPHRASE, SENTIMENT, SIMILARITY, formats, read_rows
from tests.fuzz import damaged, fuzz

FORMATS = SENTIMENT, PARAPHRASE, SIMILARITY
HEADERS = {form: ["", "id", *form.texts, form.label] for form in FORMATS}
CELLS = st.one_of(
    st.sampled_from(["a cat", "", " ", '"a" b', 'a "b"', "a\nb", "a\tb", "\u2028", "caf\u00e9", "\ufeff", "'"]),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), max_size=12))
PLAIN = st.sampled_from(["a cat", "", "it 's", "caf\u00e9", "\u2028 x"])
LABELS = {SENTIMENT: ["0", "4", "2.0"], PARAPHRASE: ["0.0", "1.0"], SIMILARITY: ["0", "4.6", "5.0"]}
# Pieces of rows, which a file is put together of: good, bad, and quotes and ends in wrong places.
PIECES = st.sampled_from([
    b"9\tx1\ta cat\t3\n", b"9\tx2\ta\tb\t1.0\n", b"9\tx3\ta\tb\n", b"9\t\ta\tb\t1\n", b"9\tx 4\ta\t1\n",
    b"8\tx7\ta\t\n", b"8\tx8\ta\tb\tnan\n", b"8\tx9\ta\tb\t9\n", b"8\tx1\t\"a\nb\"\t2\n", b"\"8\"\txa\ta\tb\t0\n",
    b"7\tx5\t\"a\t1\n", b"7\tx6\ta\t\"1\n", b'"', b'""', b"\t", b" ", b"\n", b"\r", b"\r\n", b"\0", b"\xe9",
    b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\x1f\x8b"])


@pytest.fixture
def path(tmp_path):
    """Return the path of the file that is written anew for each example."""
    return tmp_path / "file.csv"


def table(form, rows, ends="\n"):
    """Return rows of cells under the header of `form` as bytes, as csv writes them."""
    file = io.StringIO()
    csv.writer(file, delimiter="\t", lineterminator="\n").writerows([HEADERS[form], *rows])
    return file.getvalue().replace("\n", ends).encode()


def lines_of(content):
    """Return the lines of bytes, whatever ends them."""
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


@st.composite
def sound_files(draw, cells=CELLS):
    """Draw (format, [cells of a row], bytes of the file) of a sound file."""
    form = draw(st.sampled_from(FORMATS))
    ids = draw(st.lists(st.text("abcXYZ019_-.,", min_size=1, max_size=6), max_size=8, unique_by=str.lower))
    cells = cells.filter(lambda text: not ("\n" in text and "\t" in text))  # such a text is refused
    rows = [[draw(st.sampled_from(("0", "1"))), row_id, *(draw(cells) for _ in form.texts),
             draw(st.sampled_from(LABELS[form]))] for row_id in ids]
    return form, rows, table(form, rows, draw(st.sampled_from(("\n", "\r\n", "\r"))))


def read(path, form, labelled, skip_bad_rows=False):
    """Return the rows, or None for a UserError: one line that names the file."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return read_rows(path, form, labelled, skip_bad_rows)
        except UserError as error:
            assert str(path) in str(error) and len(str(error)) < 2000
            return None


def check_consistency(path, form, labelled):
    """Assert that rows with and without bad ones, the ids and the report tell the same of a file."""
    rows, left = read(path, form, labelled), read(path, form, labelled, skip_bad_rows=True)
    if rows is not None:
        assert left == rows
    if left is None:
        return None
    everything, report = tables.read_report(path, form, labelled)
    assert everything == left and report.rows == len(left)
    assert report.skipped == sum(map(len, report.why.values())) >= len(report.bad)
    assert (rows is None) == bool(report.bad)
    ids = [row[-1] for row in left]
    assert len(set(ids)) == len(ids) and all(len(row_id.split()) == 1 for row_id in ids)
    texts = [text for row in left for text in row[:len(form.texts)]]
    assert not any("\0" in text or ("\n" in text and "\t" in text) for text in texts)
    assert len({len(row) for row in left}) == 1
    if rows is not None and tables.recognise(path, formats()) == (form, labelled):
        assert prediction_ids(path, form, labelled) == ids
    return report


def test_sound_files_are_read_back(path, record):
    def sound(drawn):
        form, rows, content = drawn
        path.write_bytes(content)
        expected = [(*(form.clean(cell) for cell in cells[2:-1]), form.type(float(cells[-1])), cells[1].lower())
                    for cells in rows]
        assert (read(path, form, True) or []) == expected
        assert not rows or prediction_ids(path, form) == [row[-1] for row in expected]

    n = fuzz(sound, 200, sound_files())
    record("Fuzzing", "sound data files: any texts, quoted or not, all line ends", "the rows that were written",
           f"{n} examples")


def test_no_row_is_lost(path, record):
    """Without quotes every line that is not empty is one row: read, or skipped and counted."""
    def lost(drawn, pieces, places):
        form, _, content = drawn
        lines = lines_of(content)
        for piece, place in zip(pieces, places, strict=False):
            lines.insert(1 + place % len(lines), piece.replace(b'"', b""))
        content = b"\n".join(lines)
        path.write_bytes(content)
        report = check_consistency(path, form, True)
        if report is not None:
            assert report.rows + report.skipped == sum(line != b"" for line in lines_of(content)) - 1  # the header

    n = fuzz(lost, 150, sound_files(PLAIN), st.lists(PIECES, max_size=4), st.lists(st.integers(0, 20), min_size=4))
    record("Fuzzing", "data files with bad rows and without quotes", "rows read and skipped add up to the lines",
           f"{n} examples")


def test_damaged_files(path, record):
    def damage(drawn, form, labelled):
        path.write_bytes(drawn)
        check_consistency(path, form, labelled)
        recognised = None
        with contextlib.suppress(UserError):
            recognised = tables.recognise(path, formats())
        assert recognised is None or recognised[0] in FORMATS

    forms = st.sampled_from(FORMATS)
    broken = sound_files().flatmap(lambda drawn: damaged(drawn[2]))
    pieces = st.tuples(st.sampled_from(FORMATS).map(lambda form: table(form, [])), st.lists(PIECES, max_size=20))
    n = fuzz(damage, 100, broken, forms, st.booleans())
    n += fuzz(damage, 100, pieces.map(lambda drawn: drawn[0] + b"".join(drawn[1])), forms, st.booleans())
    n += fuzz(damage, 50, st.binary(max_size=200), forms, st.booleans())
    record("Fuzzing", "damaged data files, files of odd pieces, any bytes", "rows or a UserError that names the file",
           f"{n} examples")


def test_a_quote_takes_no_row_with_it(path, record):
    """A stray quote in a sound file: the other rows are read as they were, or counted."""
    def stray(drawn, place):
        form, _, content = drawn
        content = b"\n".join(lines_of(content))
        path.write_bytes(content)
        whole = read(path, form, True) or []
        place = content.find(b"sent") + place % (len(content) - content.find(b"sent") + 1)
        path.write_bytes(content[:place] + b'"' + content[place:])
        hit = len(lines_of(content[:place])) - 2  # the row with the quote
        if (report := check_consistency(path, form, True)) is not None:
            left = read(path, form, True, skip_bad_rows=True)
            assert report.rows + report.skipped == len(whole)
            assert left[:max(hit, 0)] == whole[:max(hit, 0)]
            assert all(row in whole or row[-1].replace('"', "") == whole[hit][-1] for row in left)

    n = fuzz(stray, 150, sound_files(PLAIN), st.integers(0, 500))
    record("Fuzzing", "a stray quote anywhere in a data file", "every other row read as it was, or counted",
           f"{n} examples")
