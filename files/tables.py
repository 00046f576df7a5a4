"""Files to rows: one set of rules for the course's files, and a report of what was read.

Rows are plain tuples, as the course has them: (sentence, label, id) and (sentence1, sentence2, label,
id); the rows of a test file lack the label.

A file is UTF-8 text, with or without a byte-order mark, lines ending in any of the usual ways, cells parted by
tabs and perhaps quoted, as Python's csv reads them. Rows without a label are skipped and counted, as the course
does; empty texts are read and counted; any other bad row stops, or is skipped and counted with `skip_bad_rows`.
"""

import csv
import difflib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from files.errors import UserError, remedy, speaks

NO_LABEL = "without a label"
NO_TEXT = {b"\x1f\x8b": "packed with gzip: unpack it with `gunzip`, or `gzip -d < FILE > NEW.csv`",
           b"PK\x03\x04": "a zip archive or a workbook: unpack it, or save the table as tab-separated text",
           b"\xff\xfe": "UTF-16 text: save it as UTF-8", b"\xfe\xff": "UTF-16 text: save it as UTF-8"}  # first bytes
LARGEST = 2**30  # bytes of a file that are read; Quora's training file has 2**24


def preprocess_string(s):
    """Lower-case a text and set its full stops, question marks, commas and apostrophes apart."""
    for mark in ".?,'":
        s = s.replace(mark, f" {mark}")
    return " ".join(s.lower().split())


def lower_strip(s):
    """Lower-case a text and strip the white space around it."""
    return s.lower().strip()


class FileFormat(NamedTuple):
    """What one task's files hold: the text columns, how they are cleaned, the label and its range."""

    texts: tuple
    clean: Callable
    label: str
    type: type
    maximum: int
    name: str


class Report(NamedTuple):
    """What was read of a file: how many rows, how many were skipped and why, {sort of row: numbers of its lines}.

    `bad` says of each skipped row that was not just left unlabelled what is wrong, where, and what to do; `empty`
    rows have an empty text, and were read.
    """

    path: str
    rows: int
    skipped: int
    why: dict
    bad: list
    empty: int

    def __str__(self):
        sorts = []
        for sort, lines in self.why.items():
            first = ", ".join([*map(str, lines[:3]), *(["..."] if lines[3:] else [])])
            sorts.append(f"{len(lines)} {'row' if len(lines) == 1 else 'rows'} {sort} skipped (line {first})")
        empty = [f"{self.empty} with an empty text"] if self.empty else []
        return "; ".join((f"load {self.rows} data from {self.path}", *empty, *sorts))

    def refusal(self, skip_bad_rows=False):
        """Return why no run should start from this file, or None."""
        if self.bad and not skip_bad_rows:
            more = f"; {len(self.bad) - 1} more, see `python -m scripts.check_data {self.path}`" if self.bad[1:] else ""
            return f"{self.bad[0]} (training leaves bad rows out with --skip_bad_rows){more}"
        if not self.rows:
            return f"{self.path} holds no row{' with a label' if NO_LABEL in self.why else ''}; fetch or write it again"
        return None


def require_files(paths):
    """Raise UserError, naming them all, when some of the data files are not there or two of them are one file."""
    paths = [*paths]
    folders = [str(path) for path in paths if os.path.isdir(path)]
    if folders:
        raise UserError(f"{', '.join(folders)} is a folder, not a data file; name the file in it")
    missing = [str(path) for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(f"no data file {', '.join(missing)}; `python -m scripts.download_data` fetches the course's "
                        "files, and `python multitask_classifier.py --demo` does without them")
    first = {}
    for path in paths:
        other = first.setdefault(os.path.realpath(path), path)
        if other is not path:
            raise UserError(f"{other} and {path} are one file, and no row may be trained on and predicted: name "
                            "another file for one of the two")


def read_text(path):
    """Return a file's text, its lines ending in "\\n", and {line: what is wrong} for lines with damaged bytes."""
    require_files([path])
    try:
        if os.path.getsize(path) > LARGEST:
            raise UserError(f"{path} has {os.path.getsize(path) / 2**30:.1f} GiB, no data file is that large: name "
                            "the file that was meant")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy(error)}") from error
    for start, what in NO_TEXT.items():
        if data.startswith(start):
            raise UserError(f"{path} is {what}")
    damaged = b"\0" in data
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:  # each byte that is no UTF-8 becomes a lone surrogate
        text, damaged = data.decode("utf-8-sig", "surrogateescape"), True
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    wrong = {}
    for line, content in enumerate(text.split("\n") if damaged else (), 1):
        if found := re.search("[\0\udc80-\udcff]", content):
            byte = len(content[:found.start()].encode("utf-8", "surrogateescape")) + 1
            what = "0x00, no text" if found[0] == "\0" else f"0x{ord(found[0]) & 0xff:02x}, no UTF-8"
            wrong[line] = f"byte {byte} is {what}; save the file as UTF-8 or mend the line"
    return text, wrong


def read_table(path):
    """Yield (lines, cells, problem) for the header and the rows of a tab-separated file.

    `lines` is a range; `problem` is None, or (what sort of row it is, what is wrong and what to do).
    """
    text, damaged = read_text(path)
    reader = csv.reader(io.StringIO(text), delimiter="\t")
    width, last = None, 0
    while True:
        try:
            cells, failure = next(reader), None
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            cells, failure = [], error
        first, last = last + 1, reader.line_num
        if not cells and not failure:  # an empty line
            continue
        lines, problem = range(first, first + 1), None
        width = width or len(cells)
        # A text may hold line ends and tabs, but with as many tabs as a row, or a line that begins with a row's number,
        # it is rows that a stray quote made one of.
        swallowed = any("\n" in cell and (cell.count("\t") >= width - 1 or re.search(r"\n\d+\t", cell))
                        for cell in cells)
        if last > first and (failure or len(cells) != width or swallowed):
            lines = range(first, last + 1)
            problem = "behind an open quote", (f"a quote opens here and swallows the lines up to {last}; close it, "
                                               "or write it twice in a quoted text")
        elif damaged and (line := next((line for line in range(first, last + 1) if line in damaged), None)):
            lines, problem = range(line, line + 1), ("with damaged bytes", damaged[line])
        elif failure:
            problem = "with too long a cell", (f"a cell has more than {csv.field_size_limit():,} characters; "
                                               "shorten it or remove the row")
        elif len(cells) != width:
            sort, hint = ("many", "is there a tab in a text?") if len(cells) > width else ("few", "was it cut off?")
            problem = f"with too {sort} cells", (f"{len(cells)} cells where the header has {width} ({hint}); "
                                                 "mend or remove the row")
        yield lines, cells, problem


def like(column, header, forms):
    """Return [the name in a header that may stand for `column`], or [] when none is like it; names in use aside."""
    known = {"id", *(name for form in forms for name in (*form.texts, form.label))}
    names = {name[:40].lower(): name for name in header[:40] if name not in known}
    return [names[name] for name in difflib.get_close_matches(column, names, 1, 0.75)]


def recognise(path, forms):
    """Return (the one of `forms` that a file's header fits, whether the file has labels).

    Several fit where their columns are the same: the first of them is returned.
    """
    _, header, _ = next(read_table(path), (None, [], None))
    for form in forms:
        if form.label in header or like(form.label, header, forms):
            return form, True
    return max(forms, key=lambda form: len({*form.texts} & {*header})), False


def names_of(form, forms, labelled=True):
    """Return what people call the files with these columns, "SST or CFIMDB": the header does not tell them apart."""
    same = [other.name for other in forms
            if other.texts == form.texts and (not labelled or other.label == form.label)]
    return " or ".join(dict.fromkeys(same)) or form.name


def places(path, header, form, labelled, forms=()):
    """Return where a row's cells stand: its texts, the id and the label, which is None in a test file.

    Raises UserError, with what may be the matter, when the header has not each of these columns once; `forms` are all
    those that the file may be of by mistake.
    """
    columns = [*form.texts, "id", *([form.label] if labelled else [])]
    wrong = [column for column in columns if header.count(column) != 1]
    swapped = [names_of(other, forms) for other in forms if other.label in header and form.label not in header
               or set(other.texts) <= set(header) and not set(form.texts) & set(header)]
    if not wrong and not swapped:
        return [*map(header.index, columns), *([] if labelled else [None])]
    name = names_of(form, forms)
    if swapped:
        hint = f"this is a file of {swapped[0]}, not of {name}: were two paths swapped?"
    elif mark := next((mark for mark in ",;|" if len(header) == 1
                       and {*columns} & {name.strip('" ') for name in header[0].split(mark)}), None):
        hint = f"its cells are parted by {mark!r}: save it as tab-separated text"
    elif near := like(wrong[0], header, forms):
        hint = f"rename {near[0]!r} to {wrong[0]!r}"
    elif wrong == [form.label]:
        hint = f"is this a test file of {name}, which has no labels?"
    else:
        hint = f"a file of {name} is tab-separated and begins with a line of these names"
    raise UserError(f"{path}, line 1: not one column {', '.join(wrong or [form.label])} "
                    f"in the header {str(header[:12])[:200]}; {hint}")


def parse_label(text, form):
    """Return the label of `form` that a cell's text spells, or None."""
    if not re.fullmatch(r"\s*\d+(\.\d*)?\s*", text, re.ASCII):
        return None
    value = float(text)
    return form.type(value) if 0 <= value <= form.maximum and value == form.type(value) else None


def row_problem(row_id, label, form, first_lines):
    """Return what is wrong with a row, as read_table does; `label` is a cell's text, or None in a test file."""
    if label is not None and not label.strip():
        return NO_LABEL, "it has no label"
    if len(row_id.split()) != 1:
        return "with a bad id", f"the id is {row_id[:60]!r}, but must be one word; mend or remove the row"
    if row_id in first_lines:
        return "with a repeated id", (f"the id {row_id[:60]!r} stands in line {first_lines[row_id]} already; "
                                      "remove the row or give it an id of its own")
    if label is not None and parse_label(label, form) is None:
        kind = "a whole number" if form.type is int else "a number"
        return "with a bad label", (f"{form.label} is {label[:60]!r}, but must be {kind} from 0 to {form.maximum}; "
                                    "mend or remove the row")
    return None


def read_report(path, form, labelled=True, forms=()):
    """Return (rows, Report) of one file, bad rows left out; raises UserError when the whole file is bad.

    `forms` are those that it may be of by mistake, which the message then says.
    """
    table = read_table(path)
    lines, header, problem = next(table, (None, None, None))
    if problem or not header:
        raise UserError(f"{path}, line {lines[0]}: {problem[1]}" if problem else f"{path} is empty; fetch it again")
    *texts, id_place, label_place = places(path, header, form, labelled, forms)
    rows, why, bad, first_lines = [], {}, [], {}
    for lines, cells, problem in table:
        if not problem:
            row_id = lower_strip(cells[id_place])
            label = cells[label_place] if labelled else None
            problem = row_problem(row_id, label, form, first_lines)
        if problem:
            why.setdefault(problem[0], []).extend(lines)
            if problem[0] != NO_LABEL:
                bad.append(f"{path}, line {lines[0]}: {problem[1]}")
            continue
        first_lines[row_id] = lines[0]
        row = [form.clean(cells[place]) for place in texts]
        rows.append((*row, parse_label(label, form), row_id) if labelled else (*row, row_id))
    empty = sum("" in row for row in rows)
    return rows, Report(str(path), len(rows), sum(map(len, why.values())), why, bad, empty)


def read_sound(path, form, labelled=True, skip_bad_rows=False, forms=()):
    """Return what read_report does; raises UserError also for a bad row, unless `skip_bad_rows`, and for no row."""
    rows, report = read_report(path, form, labelled, forms)
    if refusal := report.refusal(skip_bad_rows):
        raise UserError(refusal)
    return rows, report


def read_rows(path, form, labelled=True, skip_bad_rows=False, forms=()):
    """Read one file into rows and print the report; a bad row raises UserError, or `skip_bad_rows` leaves it out."""
    rows, report = read_sound(path, form, labelled, skip_bad_rows, forms)
    print(report)
    if report.bad and speaks():
        print(f"warning: bad rows of {path} are left out; of a dev or test file, the predictions lack their ids and "
              f"cannot be handed in: {report.bad[0]}", file=sys.stderr)
    return rows
