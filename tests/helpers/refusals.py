"""Run a training script whose user made a mistake, and see that it ends before any work."""

import sys

import pytest

import classifier
import multitask_classifier
from bert import BertModel
from files import tables
from files.errors import run_script

SCRIPTS = {"classifier": classifier, "multitask": multitask_classifier}
ONE_ERROR = "one error that says what to do, before anything is read or written"


def tree(folder):
    """Return {path: bytes, or None of a folder} of all that is in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


def ended(main, capsys):
    """Run `main` as a script that ends with exit code 2; return its one error line."""
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said, said
    [error] = [line for line in said.splitlines() if line.startswith("error: ")]
    return error.removeprefix("error: ")


@pytest.fixture
def refusal(course_folder, monkeypatch, capsys):
    """Return a function that runs a script with mistaken flags and gives its error; nothing is read or written."""
    def work(*args, **kwargs):
        raise AssertionError("weights or data were loaded")

    monkeypatch.setattr(BertModel, "__init__", work)
    monkeypatch.setattr(tables, "read_report", work)

    def refusal(script, flags):
        before = tree(course_folder)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags.split()])
        error = ended(SCRIPTS[script].main, capsys)
        assert tree(course_folder) == before
        return error
    return refusal
