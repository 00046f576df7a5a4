"""Fuzzed prediction files: the validator takes exactly those that a plain restatement of the contract takes."""

import math

import pytest
from hypothesis import strategies as st

from prepare_submit import problems_in
from tests.fuzz import damaged, fuzz

HEADERS = {"sst": b"id \t Predicted_Sentiment \n", "cfimdb": b"id \t Predicted_Sentiment \n",
           "para": b"id \t Predicted_Is_Paraphrase \n", "sts": b"id \t Predicted_Similiary \n"}
VALUES = {"sst": [b"0", b"1", b"2", b"3", b"4"], "cfimdb": [b"0", b"1"], "para": [b"0.0", b"1.0"],
          "sts": [b"-0.25", b"1e-05", b"3.0", b"4.999999523162842"]}
OTHERS = st.one_of(st.sampled_from([
    b"", b"-1", b"5", b"00", b"+1", b"0.5", b"1.", b".5", b"nan", b"inf", b"-inf", b"1e999", b"1e-999", b"1e", b"1_0",
    b"\xd9\xa3", b"0x1", b"tensor(0.)", b"True", b"1\xc2\xa0", b"\x000", b"1 2", b" 1", b"\t1"]), st.binary(max_size=4))
IDS = [b"a1", b"b2", b"66\xc3\xa9", b",", b"00a", b"a1b"]


def takes(content, task):
    """Tell whether the contract takes the bytes of a file: a header, and each id once in a line `id , value `."""
    header, *lines = content.split(b"\n")
    if header + b"\n" != HEADERS[task] or not lines or lines.pop() != b"":
        return False
    cells = [line.split(b" ") for line in lines]
    if any(len(row) != 4 or row[1] != b"," or row[3] != b"" for row in cells):
        return False
    if sorted(row[0] for row in cells) != sorted(IDS):
        return False
    return all(is_number(row[2]) if task == "sts" else row[2] in VALUES[task] for row in cells)


def is_number(text):
    """Tell whether bytes are a decimal number that is finite."""
    try:
        return set(text) <= set(b"0123456789+-.eE") and math.isfinite(float(text))
    except ValueError:
        return False


@st.composite
def files(draw, task):
    """Draw the bytes of a valid file with up to three mistakes, or none, in them."""
    rows = [[name, b" , ", draw(st.sampled_from(VALUES[task])), b" \n"] for name in draw(st.permutations(IDS))]
    header = HEADERS[task]
    for _ in range(draw(st.integers(0, 3))):
        i = draw(st.integers(0, max(len(rows) - 1, 0)))
        kind = draw(st.sampled_from(("drop", "repeat", "blank", "value", "id", "between", "end", "header", "move")))
        if kind == "header":
            header = draw(st.sampled_from((b"", b"\xef\xbb\xbf" + header, header[:-1], header.lower(), header * 2,
                                           header.replace(b"\n", b"\r\n"), *HEADERS.values())))
        elif kind == "blank":
            rows.insert(i, [draw(st.sampled_from((b"\n", b" \n", b"\r\n", b" , \n", b"\0\n")))])
        elif rows and kind == "drop":
            del rows[i]
        elif rows and kind == "move":
            rows.append(rows.pop(i))
        elif rows and kind == "repeat":
            rows.append(list(rows[i]))
        elif rows and len(rows[i]) == 4:
            place, others = {"id": (0, st.one_of(st.sampled_from(IDS), OTHERS)), "value": (2, OTHERS),
                             "between": (1, st.sampled_from((b", ", b" ,", b",", b"  , ", b"\t,\t", b" ; "))),
                             "end": (3, st.sampled_from((b"\n", b" \r\n", b"", b" ", b"  \n", b" \n\n")))}[kind]
            rows[i][place] = draw(others)
    return header + b"".join(b"".join(row) for row in rows)


@pytest.mark.parametrize("task", sorted(HEADERS))
def test_prediction_files(task, tmp_path, record):
    path, taken = tmp_path / f"{task}.csv", []
    ids = [name.decode() for name in IDS]

    def check(content):
        path.write_bytes(content)
        problems = problems_in(path, task, ids)
        assert (problems == []) == takes(content, task), problems
        assert all("\n" not in problem and len(problem) < 1_000 for problem in problems)
        taken.append(not problems)

    n = fuzz(check, 150, st.one_of(files(task), files(task).flatmap(damaged)))
    assert 0 < sum(taken) < n
    record("Fuzzing", f"prediction files of {task} with rows and bytes changed",
           "taken exactly where the contract takes them", f"{n} examples, {sum(taken)} of them taken")
