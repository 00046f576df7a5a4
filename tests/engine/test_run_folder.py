"""The folder of a run: what is in it, taking it up with other flags, beginning anew in it, two runs in it at once."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.script_runs import RUN, checkpoint, data, flags_of, metrics, outcome, predictions, script  # noqa: F401

RESUME = ["--resume", "--run_dir", RUN]


@pytest.fixture
def run(script, data, tmp_path):  # noqa: F811
    """Return a function that runs the script in a folder of its own and gives (exit code, what it printed)."""
    return lambda *flags, **more: script.run(tmp_path, *flags, **more)


STOP_AT_STEP_5 = """
import os, signal
from engine.step import TrainingStep
step, calls = TrainingStep.__call__, []
def stopping(self, parts):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, parts)
TrainingStep.__call__ = stopping
"""


@pytest.fixture
def halted(run, data, tmp_path):  # noqa: F811
    """The folder of a run that a signal has stopped at step 5 of 18."""
    code, said = run(*flags_of(data, "--epochs", "2"), before=STOP_AT_STEP_5)
    assert code == 143 and "stopped at step 5 of 18" in said, said
    return tmp_path / RUN


def test_what_is_in_the_folder(run, data, tmp_path):  # noqa: F811
    code, said = run(*flags_of(data, "--epochs", "2", "--warmup", "0.5"))
    assert code == 0, said
    folder = tmp_path / RUN
    assert {"args.json", "metrics.jsonl", "best.pt", "last.pt"} <= {path.name for path in folder.iterdir()}
    stored = json.loads((folder / "args.json").read_text())
    assert stored["args"]["lr"] == 1e-3 and stored["args"]["epochs"] == 2 and stored["args"]["tasks"] == [
        "sst", "para", "sts"]
    assert stored["torch"] == torch.__version__ and stored["python"] and "commit" in stored
    assert stored["device"].startswith("cpu") and stored["processes"] == 1

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    scores = [line for line in lines if line["kind"] == "score"]
    assert [line["step"] for line in train] == [4, 8, 9, 12, 16, 18]
    assert [(line["step"], line["epoch"]) for line in scores] == [(9, 1), (18, 2)]
    for line in train:
        assert set(line["loss"]) <= {"sst", "para", "sts"} and all(loss > 0 for loss in line["loss"].values())
        assert line["examples_per_second"] > 0
        rises = min(1, line["step"] / 9)  # the rate that the step had
        assert line["lr"] == pytest.approx(1e-3 * (rises if line["step"] <= 9 else (19 - line["step"]) / 9))
    for line in scores:
        assert set(line["dev"]) == set(line["train"]) == {"sst", "para", "sts"} and line["seconds"] > 0
        assert line["score"] == pytest.approx((line["dev"]["sst"] + line["dev"]["para"]
                                               + (line["dev"]["sts"] + 1) / 2) / 3)
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["args"]["lr"] == 1e-3 and best["model_config"]["bert_config"]["hidden_size"] == 24


def test_a_finished_run_predicts_again_and_trains_no_more(run, data, tmp_path):  # noqa: F811
    assert run(*flags_of(data, "--epochs", "1"))[0] == 0
    files, weights = predictions(tmp_path), (tmp_path / RUN / "best.pt").read_bytes()
    assert len(files) == 6
    shutil.rmtree(tmp_path / "predictions")
    code, said = run(*RESUME)
    assert code == 0 and "resume" in said and "at step 9 of 9" in said
    assert predictions(tmp_path) == files and (tmp_path / RUN / "best.pt").read_bytes() == weights


def test_resume_without_a_checkpoint_begins(run, data, tmp_path):  # noqa: F811
    code, said = run("--resume", *flags_of(data, "--epochs", "1"))
    assert code == 0 and "holds no checkpoint yet: the run begins" in said
    assert checkpoint(tmp_path / RUN / "last.pt")["training"]["step"] == 9


def test_flags_that_are_others_now_are_named_and_count(run, halted, tmp_path):
    code, said = run(*RESUME, "--lr", "0.01", "--weight_decay", "0.5", "--epochs", "3", "--lr_schedule", "constant",
                     "--warmup", "0")
    assert code == 0, said
    said = [line for line in said.splitlines() if line.startswith("resume: ")]
    assert sorted(said) == ["resume: --epochs is 3 now, was 2", "resume: --lr is 0.01 now, was 0.001",
                            "resume: --lr_schedule is constant now, was linear",
                            "resume: --warmup is 0.0 now, was 0.1", "resume: --weight_decay is 0.5 now, was 0.01"]
    last = checkpoint(halted / "last.pt")
    assert {group["lr"] for group in last["optim"]["param_groups"]} == {0.01}
    assert {group["weight_decay"] for group in last["optim"]["param_groups"]} == {0.5, 0.0}
    assert last["training"]["step"] == 27
    assert json.loads((halted / "args.json").read_text())["args"]["lr"] == 0.01
    # And what was said on either command line is what a third one begins with.
    code, said = run(*RESUME)
    assert code == 0 and "resume: " not in said


@pytest.mark.parametrize("flags", [
    ["--seed", "1"], ["--option", "pretrain"], ["--fine-tune-mode", "last-linear-layer"], ["--tasks", "sst"],
    ["--pooling", "mean"], ["--pair_encoding", "bi"], ["--batch_size", "4"], ["--max_length", "9"],
    ["--task_batch_size", "sst=4"], ["--train_rows", "5"], ["--param_groups", "flat"],
])
def test_flags_that_a_run_must_keep(flags, run, halted):
    before = (halted / "last.pt").read_bytes()
    code, said = run(*RESUME, *flags)
    name = "--option" if "mode" in flags[0] else flags[0]
    assert code == 2 and f"error: {name} is" in said and f"but the run in {RUN} began with" in said
    assert (halted / "last.pt").read_bytes() == before


def test_other_training_data_are_refused(run, halted, data):  # noqa: F811
    other = Path("more")
    shutil.copytree(data / "data", halted.parent / other)
    path = halted.parent / other / "ids-sst-train.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))
    code, said = run(*RESUME, "--data_dir", str(path.parent))
    assert code == 2 and "the training data or the schedule are others" in said


def test_an_unfinished_run_moves_aside(run, halted, data, tmp_path):  # noqa: F811
    metrics_then, last = (halted / "metrics.jsonl").read_bytes(), (halted / "last.pt").read_bytes()
    code, said = run(*flags_of(data, "--epochs", "1"))
    aside = tmp_path / f"{RUN}.1"
    assert code == 0 and f"the unfinished run in {RUN} is {RUN}.1 now; --resume --run_dir {RUN}.1 goes on" in said
    assert (aside / "last.pt").read_bytes() == last and (aside / "metrics.jsonl").read_bytes() == metrics_then
    assert [line["step"] for line in metrics(halted) if line["kind"] == "score"] == [9]

    code, said = run("--resume", "--run_dir", f"{RUN}.1")
    assert code == 0 and checkpoint(aside / "last.pt")["training"]["step"] == 18
    assert checkpoint(halted / "last.pt")["training"]["step"] == 9
    # A finished run gives way.
    code, said = run(*flags_of(data, "--epochs", "1"))
    assert code == 0 and "unfinished" not in said and not (tmp_path / f"{RUN}.2").exists()


def test_two_runs_in_one_folder_at_once(run, script, halted):  # noqa: F811
    import filelock

    with filelock.FileLock(next(halted.parent.rglob("*.lock"), halted.with_name(halted.name + ".lock"))):
        code, said = run(*RESUME)
    assert code == 2 and f"another process trains in {RUN}" in said


def test_a_damaged_record_of_the_flags(run, halted):
    (halted / "args.json").write_text("{")
    code, said = run(*RESUME)
    assert code == 2 and "args.json is not JSON" in said and "in another --run_dir" in said
