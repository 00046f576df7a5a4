"""Runs of commit dd35090, from before the files moved and args.json had a format, still load, resume and predict.

`older_runs/` holds two runs of four steps on synthetic rows, and in expected.jsonl the metrics with which that commit
ended them after eight.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

import multitask_classifier
from engine.checkpoint import load_checkpoint, load_model
from tests.helpers.fixtures_tiny import write_course_files

OLDER = Path(__file__).parents[1] / "older_runs"


def metrics(path):
    """Return the lines of a metrics file as (kind, step, numbers)."""
    return [(line["kind"], line["step"], line["dev"] if line["kind"] == "score" else line["loss"])
            for line in map(json.loads, path.read_text().splitlines())]


@pytest.fixture(params=["techniques", "round-robin"])
def older_run(request, tmp_path, monkeypatch):
    """Stand in a folder with a copy of an older run in runs/, its data and its encoder; return the run's folder."""
    write_course_files(tmp_path / "data", rows=20)
    shutil.copytree(OLDER / "bert", tmp_path / "bert")
    folder = Path(shutil.copytree(OLDER / request.param, tmp_path / "runs" / request.param))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "cache"))
    return folder.relative_to(tmp_path)


def test_it_is_resumed_to_the_end_that_it_would_have_had(older_run, monkeypatch, capsys):
    flags = ["--resume", "--run_dir", str(older_run), "--max_steps", "8"]
    monkeypatch.setattr(sys, "argv", ["multitask_classifier.py", *flags])
    multitask_classifier.main()

    said = capsys.readouterr().out
    assert f"resume {older_run} at step 4 of 8" in said and "resume: --max_steps is 8 now, was 4" in said
    assert said.count("resume: --") == 1  # round-robin still ends with the shortest task
    for (kind, step, numbers), (*expected, values) in zip(
            metrics(older_run / "metrics.jsonl"), metrics(older_run / "expected.jsonl"), strict=True):
        assert [kind, step] == expected and numbers == pytest.approx(values, abs=2e-4)
    assert len(list(Path("predictions").glob("*-output.csv"))) == 6


def test_its_best_checkpoint_loads(older_run):
    saved = load_checkpoint(older_run / "best.pt")
    model = load_model(multitask_classifier.MultitaskBERT, saved, older_run / "best.pt", "cpu")
    weights = model.state_dict()
    assert all(weights[name].equal(tensor) for name, tensor in saved["model"].items())
