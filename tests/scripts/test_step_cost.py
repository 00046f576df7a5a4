"""The benchmark of what a step costs: with passes through the encoder for a clock its ratios are known."""

import json

import pytest

from benchmarks import step_cost
from bert import BertModel
from files.errors import UserError

ROWS = """base | --encoder_dropout_prob 0.1
R-Drop | --penalty rdrop
one step for all | --schedule round-robin
LoRA with an average | --adapt lora:rank=2 --ema 0.9
unfreezing | --adapt gradual-unfreezing --epochs 3
"""


@pytest.fixture
def passes(monkeypatch):
    """Let the clock be the number of rows that have gone through an encoder; return the list of them."""
    rows, forward = [], BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda self, ids, *args, **options: (
        rows.append(len(ids)), forward(self, ids, *args, **options))[1])
    monkeypatch.setattr(step_cost, "clock", lambda device: sum(rows))
    return rows


def test_ratios_by_a_clock_that_counts_passes(passes, course_folder, capsys):
    (course_folder / "rows.txt").write_text(ROWS)
    flags = ["rows.txt", "--data", "data", "--rows", "4", "--rounds", "2"]
    step_cost.main(flags)
    *table, line = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert {result["name"]: result["ratio"] for result in report["results"]} == {
        "R-Drop": 2, "one step for all": 1, "LoRA with an average": 1, "unfreezing": 1}
    assert (report["rows"], report["rounds"], report["device"]) == (4, 2, "cpu")
    assert set(passes) == {4}  # the same rows in every batch
    assert len(table) == 6 and table[2].startswith("| R-Drop | 2.00 | 2.00 | 2.00 | ")
    trained = {result["name"]: result["trained"] for result in report["results"]}
    assert trained["LoRA with an average"] < trained["R-Drop"] == trained["one step for all"]
    step_cost.main([*flags, "--only", "R-Drop"])
    assert [result["name"] for result in json.loads(capsys.readouterr().out.splitlines()[-1])["results"]] == ["R-Drop"]


def test_a_row_that_is_not_there(course_folder):
    (course_folder / "rows.txt").write_text(ROWS)
    with pytest.raises(UserError, match="nothing to compare with the base: rows.txt has no row mixout"):
        step_cost.main(["rows.txt", "--data", "data", "--only", "mixout"])
