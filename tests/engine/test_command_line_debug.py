"""--debug in every script, bad rows left out on request, and notes about flags that do nothing."""

import importlib
import re
import sys
from pathlib import Path

import pytest

import multitask_classifier
import prepare_submit
from files import errors as files
from files.errors import Parser, UserError, run_script

ROOT = Path(__file__).parents[2]
STARTED_BY_OTHERS = {"hugging_face.py", "stopwatch.py", "textbook.py", "this_engine.py"}  # by benchmarks.throughput
SCRIPTS = sorted(str(path.relative_to(ROOT)) for folder in (".", "scripts", "benchmarks")
                 for path in (ROOT / folder).glob("*.py")
                 if '__name__ == "__main__"' in path.read_text() and path.name not in STARTED_BY_OTHERS)


def test_every_script_has_the_flag_and_ends_the_same_way(capsys, record):
    for script in SCRIPTS:
        text = (ROOT / script).read_text()
        assert "    run_script(" in text, script
        assert re.search(r"(?<!argparse\.)\b(Argument)?Parser\(", text), script
    with pytest.raises(SystemExit) as stop:
        Parser().parse_args(["--help"])
    assert stop.value.code == 0 and "--debug" in capsys.readouterr().out
    record("Command line", "--help", "every script names --debug", f"{len(SCRIPTS)} scripts")


@pytest.mark.parametrize("module, flags", [("multitask_classifier", ["--tasks", "sst", "--sst_dev", "none.csv"]),
                                           ("classifier", ["--data_dir", "none"]),
                                           ("prepare_submit", ["--data_dir", "none"])])
@pytest.mark.parametrize("debug", [False, True])
def test_the_traceback_comes_with_debug_alone(module, flags, debug, tmp_path, monkeypatch, capsys, record):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{module}.py", *flags, *["--debug"] * debug])
    with pytest.raises(SystemExit) as stop:
        run_script(importlib.import_module(module).main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\nerror: ") + said.startswith("error: ") == 1
    assert ("Traceback" in said) == debug == ("UserError: " in said)
    if module == "classifier":
        record("Command line", f"a missing file{', with --debug' if debug else ''}",
               f"the error{', after its traceback' if debug else ' alone'}, exit code 2",
               said.splitlines()[-1] + (" (after a traceback)" if debug else ""), folder=tmp_path)


def test_debug_is_no_argument_of_the_run_and_does_not_stay():
    args = multitask_classifier.get_args(["--debug", "--run_dir", "x"])
    assert "debug" not in vars(args) and args.given == {"run_dir": "x"}
    assert files.Debug.shown

    def main():
        raise UserError("a mistake")

    with pytest.raises(SystemExit):
        run_script(main)
    assert not files.Debug.shown


def train(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["multitask_classifier.py", "--tasks", "sst", "--max_steps", "1", *flags])
    multitask_classifier.main()


def test_bad_rows_are_left_out_on_request(course_folder, monkeypatch, capsys, record):
    for name in ("ids-sst-train.csv", "ids-sst-dev.csv"):
        path = course_folder / "data" / name
        path.write_text(path.read_text() + "9\tbad1\tno such class\t7\n")
    with pytest.raises(UserError, match="--skip_bad_rows") as stop:
        train(monkeypatch)
    record("Command line", "a bad row without --skip_bad_rows", "one error that names file, line and flag", stop.value,
           folder=course_folder)
    train(monkeypatch, "--skip_bad_rows")
    said = capsys.readouterr()
    assert len((course_folder / "predictions" / "sst-dev-output.csv").read_text().splitlines()) == 9
    assert "bad1" not in (course_folder / "predictions" / "sst-dev-output.csv").read_text()
    [line] = {line for line in said.err.splitlines() if "sst-dev" in line}
    record("Command line", "--skip_bad_rows", "the row is counted, training and predictions do without it", line,
           folder=course_folder)
    with pytest.raises(UserError, match="sst-dev.csv"):  # such predictions are not handed in
        prepare_submit.main(["--part", "2"])


def test_notes_about_flags_that_do_nothing(course_folder, monkeypatch, capsys, record):
    train(monkeypatch, "--max_length", "600", "--eval_every", "7", "--patience", "2")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: --max_length 600 is more than the 512 positions of bert-base-uncased: longer texts are cut there",
        "note: --eval_every 7 is more than the run's 1 steps: it is scored once, at its end",
        "note: --patience 2 cannot end this run early, which is scored 1 times"]
    for given, note in zip(("--max_length above the encoder's positions", "--eval_every above the run's steps",
                            "--patience above the number of scorings"), notes, strict=True):
        record("Command line", given, "the run goes on, and a note says what counts", note)


def test_a_folder_of_the_other_script_and_another_data_set(tmp_path, monkeypatch, record):
    import classifier

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text('{"args": {"data_set": "sst", "given": {}}}')
    with pytest.raises(UserError) as stop:
        multitask_classifier.get_args(["--resume", "--run_dir", "run"])
    assert "is the other script's" in str(stop.value)
    record("Command line", "--resume of a run of the other script", "one error that names both", stop.value)
    monkeypatch.setattr(sys, "argv", ["classifier.py", "--resume", "--run_dir", "run", "--dataset", "cfimdb"])
    with pytest.raises(UserError) as stop:
        classifier.main()
    assert "--dataset cfimdb: the run in run is that of sst" in str(stop.value)
    record("Command line", "--resume of one data set's run with the other --dataset", "one error", stop.value)
