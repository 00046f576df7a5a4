"""The table of docs/RELIABILITY.md: tests record what they gave, what should happen and what they saw.

    pytest --reliability docs/RELIABILITY.md

writes the table anew. Every full run of the suite compares its cases with the table's, times and messages aside; one
without the course's data, whose cases it leaves out, only looks for its own there.
"""

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "RELIABILITY.md"
SECTIONS = ("Data files", "Command line", "Output files", "Downloads", "Hostile files", "Fuzzing")
HEADER = "| input | expected | seen | s | MiB |\n|---|---|---|---|---|\n"
BEGIN, END = "<!-- cases: written by a test run -->", "<!-- end of the cases -->"


class Recorder:
    """Called by tests once a case has passed; keeps {(section, given, expected): row of the table}.

    Of the parameters of one test that tell the same, the last is kept. Cases that expect other things stay apart by
    their expectation, so that the table does not hang on which of several workers ends last.
    """

    def __init__(self):
        self.rows = {}

    def __call__(self, section, given, expected, seen, *, seconds=None, mib=None, folder=None):
        """Note that `given` led to what was `expected`: `seen`, a message or a short description.

        Folders of this machine, `folder` among them, are shown as DIR. `seconds` is what the case took, `mib` what
        it added to the process's memory, where they matter.
        """
        assert section in SECTIONS, section
        text = str(seen).strip().replace(str(folder), "DIR") if folder else str(seen).strip()
        text = re.sub(r"/(?:tmp|var|private|home|root)/[^\s'\",:;)]*/", "DIR/", text)
        text = re.sub(r"http://127\.0\.0\.1:\d+", "http://HOST", text)
        cells = [given, expected, shortened(text), "" if seconds is None else f"{seconds:.2f}",
                 "" if mib is None else f"{mib:.0f}"]
        self.rows[section, given, expected] = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]

    def table(self):
        """Return the document's part between BEGIN and END."""
        parts = []
        for section in SECTIONS:
            rows = [row for (where, *_), row in self.rows.items() if where == section]
            if rows:
                lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
                parts.append(f"## {section}\n\n{len(rows)} cases.{worst(rows)}\n\n{HEADER}{lines}")
        return "\n".join(parts)


def worst(rows):
    """Return which of the rows took longest and which took most memory, as two sentences; "" where none says."""
    said = ""
    for column, unit in ((3, "s"), (4, "MiB")):
        measured = [row for row in rows if row[column]]
        if measured:
            row = max(measured, key=lambda row: float(row[column]))
            said += f" {'Slowest' if unit == 's' else 'Most memory'}: {row[0]}, {row[column]} {unit}."
    return said


def shortened(text, limit=240):
    """Return the text, cut in the middle when it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[:limit - 80]} ... {text[-75:]}"


def cases(markdown):
    """Return the (input, expected) of every row of the document's tables, a set."""
    rows = re.findall(r"^\| (.*?) (?<!\\)\| (.*?) (?<!\\)\|", markdown, re.MULTILINE)
    return {row for row in rows if row != ("input", "expected")}


RECORDER = Recorder()


@pytest.fixture
def record():
    """The session's Recorder: `record(section, given, expected, seen, seconds=, mib=, folder=)`."""
    return RECORDER


def write(path):
    """Put the recorded cases into the document."""
    before, after = Path(path).read_text(encoding="utf-8").split(BEGIN)[0], END
    Path(path).write_text(f"{before}{BEGIN}\n\n{RECORDER.table()}\n{after}\n", encoding="utf-8")


def stale(all_ran):
    """Return the inputs that ran and are not in the document; with `all_ran`, also those there that did not run."""
    ran = {(row[0], row[1]) for row in RECORDER.rows.values()}
    documented = cases(DOCUMENT.read_text(encoding="utf-8"))
    return sorted(given for given, _ in (ran ^ documented if all_ran else ran - documented))
