"""Fine-tuning for each task after joint training: where it begins, which model predicts, stop and resume; --init."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.script_runs import RUN, data, difference, flags_of, metrics, outcome, predictions, script  # noqa: F401

TASKS = ("sst", "para", "sts")
# Stops in the second step of the run whose folder ends in WHERE.
STOP = """
import os, signal
from engine import loop
step = loop.Training.step
def stopping(self):
    step(self)
    if self.run.folder.endswith("WHERE") and self.standing.step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
loop.Training.step = stopping
"""


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture
def run(script, tmp_path, data):  # noqa: F811
    """Return a function that runs the script in a folder, with flags of `data` and more; it returns what it said."""
    def run(folder, *flags, ends=0, before="", **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        code, said = script.run(tmp_path / folder, *(flags_of(data) if "--resume" not in flags else []), *flags,
                                before=before)
        assert (code == 0) == (ends == 0), said
        return said
    return run


def test_each_task_goes_on_from_the_shared_model_and_predicts_with_its_own(run, tmp_path):
    said = run("both", "--epochs", "2", "--per_task_epochs", "1")
    run("joint", "--epochs", "2")
    folder = tmp_path / "both" / RUN
    shared, joint = weights(folder / "best.pt"), weights(tmp_path / "joint" / RUN / "best.pt")
    assert all(torch.equal(tensor, shared[name]) for name, tensor in joint.items())
    joint_scores = max((line for line in metrics(folder) if line["kind"] == "score"), key=lambda line: line["score"])
    assert said.count("step 0: dev ") == 3 and "epoch 1: train loss sst " in said and "train loss ;" not in said
    for task in TASKS:
        lines = [line for line in metrics(folder / task) if line["kind"] == "score"]
        assert lines[0]["step"] == 0 and lines[0]["dev"][task] == pytest.approx(joint_scores["dev"][task], abs=1e-6)
        assert f"load model from {RUN}/{task}/best.pt" in said
        alone = f"only-{task}"
        run(alone, "--tasks", task, "--init", str(folder / task / "best.pt"), "--max_steps", "1", "--lr", "0")
        name = f"{task}-dev-output.csv"
        assert predictions(tmp_path / alone)[name] == predictions(tmp_path / "both")[name]
        own = json.loads((folder / task / "args.json").read_text())["args"]
        assert own["tasks"] == [task] and own["init"] == f"{RUN}/best.pt"


@pytest.mark.parametrize("where", ["one", "para"])
def test_stopped_in_either_stage_and_resumed(where, run, tmp_path):
    flags = ("--max_steps", "4", "--per_task_epochs", "1", "--hidden_dropout_prob", "0.2")
    run("whole", *flags)
    said = run("stopped", *flags, before=STOP.replace("WHERE", where), ends=1)
    assert f"--resume --run_dir {RUN}\n" in said
    run("stopped", "--resume", "--run_dir", RUN)
    assert difference(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")) is None
    for task in TASKS:
        ends = (outcome(tmp_path / folder, f"{RUN}/{task}") for folder in ("whole", "stopped"))
        assert difference(*ends) is None


def test_models_of_an_earlier_run_are_not_taken_for_this_ones(run, tmp_path):
    flags = ("--max_steps", "3", "--per_task_epochs", "1")
    run("again", *flags, "--seed", "1")
    old = {task: weights(tmp_path / "again" / RUN / task / "best.pt") for task in TASKS}
    run("again", "--max_steps", "3", "--seed", "2")
    run("again", "--resume", "--run_dir", RUN, "--per_task_epochs", "1")
    for task in TASKS:
        new = weights(tmp_path / "again" / RUN / task / "best.pt")
        assert any(not torch.equal(new[name], tensor) for name, tensor in old[task].items())


def test_what_cannot_be(script, data, tmp_path):  # noqa: F811
    (tmp_path / "x").mkdir()
    flags = [flag for flag in flags_of(data) if flag not in ("--run_dir", RUN, "--save_every", "2")]
    code, said = script.run(tmp_path / "x", *flags, "--filepath", "best.pt", "--per_task_epochs", "1")
    assert code == 2 and "--per_task_epochs needs a folder" in said
    torch.save({}, tmp_path / "x" / "other.pt")
    code, said = script.run(tmp_path / "x", *flags_of(data), "--init", str(Path("other.pt")))
    assert code == 2 and "other.pt" in said
