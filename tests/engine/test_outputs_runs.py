"""A disk that fails in the middle of a run: one error that names the file, what was written before it whole."""

import json

from tests.helpers.script_runs import RUN, data, difference, flags_of, outcome, predictions, script  # noqa: F401

# `script` keeps the fault until the process ends.
FAIL = """
import errno
from tests.helpers.faults import failing
script.fault = failing({what!r}, errno.{error}, {match!r}, {call})
script.fault.__enter__()
"""


def test_metrics_that_cannot_be_written(script, data, tmp_path, record):  # noqa: F811
    (tmp_path / "undisturbed").mkdir()
    assert script.run(tmp_path / "undisturbed", *flags_of(data, "--epochs", "1"))[0] == 0
    fault = FAIL.format(what="write", error="ENOSPC", match="*metrics.jsonl", call=2)
    code, said = script.run(tmp_path, *flags_of(data, "--epochs", "1"), before=fault)
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in said
    assert f"{RUN}/metrics.jsonl cannot be written (No space left on device): make room there; {RUN}/last" in error
    lines = (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4]
    assert script.run(tmp_path, "--resume", "--run_dir", RUN)[0] == 0
    assert difference(outcome(tmp_path / "undisturbed"), outcome(tmp_path)) is None
    record("Output files", "the disk is full when a run logs its losses",
           "one error that names the file; no half line; --resume ends as if nothing had been", error)


def test_predictions_that_cannot_be_written(script, data, tmp_path, record):  # noqa: F811
    code, said = script.run(tmp_path, *flags_of(data, "--epochs", "1"))
    assert code == 0, said
    before = predictions(tmp_path)
    fault = FAIL.format(what="fsync", error="EIO", match="*para-test-output*", call=1)
    code, said = script.run(tmp_path, *flags_of(data, "--epochs", "1", "--seed", "3"), before=fault)
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in said
    assert "predictions/para-test-output.csv: Input/output error; the disk" in error
    after = predictions(tmp_path)
    assert after["para-test-output.csv"] == before["para-test-output.csv"] and len(after) == 6
    assert not list((tmp_path / "predictions").glob(".*"))
    record("Output files", "a disk that fails when predictions are written", "one error; the file of before is whole",
           error, folder=tmp_path)
    assert script.run(tmp_path, "--resume", "--run_dir", RUN)[0] == 0
    assert predictions(tmp_path) != before


def test_arguments_that_cannot_be_written(script, data, tmp_path, record):  # noqa: F811
    fault = FAIL.format(what="replace", error="EACCES", match="*args.json", call=1)
    code, said = script.run(tmp_path, *flags_of(data, "--epochs", "1"), before=fault)
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and f"{RUN}/args.json cannot be written (Permission denied): change its permissions" in error
    assert not list((tmp_path / RUN).iterdir())
    record("Output files", "an args.json that cannot be put in its place", "one error, no file half written", error)
