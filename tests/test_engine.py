"""One step and one epoch by hand-made cases: learning rate, clipping, NaN, moving a batch, progress, files of flags."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import engine
from engine import ArgumentParser, Progress, linear_schedule, to_device, train_one_epoch
from extensions import TASK_LOSSES
from utils import UserError

CPU = torch.device("cpu")


class Line(nn.Module):
    """One weight; the logits are weight * x."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def logits(self, batch):
        return self.weight * batch["x"]


def line_steps(n):
    """Yield n steps {"line": batch} whose best weight is 100."""
    for _ in range(n):
        yield {"line": {"x": torch.ones(2), "labels": torch.full((2,), 100.0), "sent_ids": ["a", "b"]}}


def train_line(n, weight=0.0, loss=TASK_LOSSES["mse"], **options):
    model = Line(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    means = train_one_epoch(model, line_steps(n), {"line": loss}, optimizer, linear_schedule(optimizer, n, 0.0), CPU,
                            total=n, **options)
    return model.weight.item(), means


def test_linear_schedule_by_hand():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = linear_schedule(optimizer, total_steps=10, warmup=0.35)  # 4 steps up, 6 down
    rates = []
    for _ in range(11):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1, 1.5, 2, 2, 10 / 6, 8 / 6, 1, 4 / 6, 2 / 6, 0])
    assert linear_schedule(optimizer, 4, 0.0).lr_lambdas[0](0) == 1
    assert linear_schedule(optimizer, 4, 1.0).lr_lambdas[0](3) == 1


def test_a_step_is_loss_gradient_clip_update():
    """The gradient, 2 (w - 100), is clipped to 1; the learning rate falls from 0.1 by a half."""
    assert train_line(2) == (pytest.approx(0.15), {"line": pytest.approx((100**2 + 99.9**2) / 2)})
    assert train_line(2, max_grad_norm=1e9)[0] == pytest.approx(28)  # 0.1 * 200, then 0.05 * 160
    assert train_line(1, weight=99.9, max_grad_norm=10.0)[0] == pytest.approx(99.92)  # 0.2 is below the limit
    # with a penalty that is a task of its own, the gradients add up
    both = Line()
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    step = {name: next(line_steps(1))["line"] for name in ("one", "two")}
    train_one_epoch(both, [step], dict.fromkeys(step, lambda model, batch: 3 * model.logits(batch).sum()), optimizer,
                    linear_schedule(optimizer, 1, 0.0), CPU, max_grad_norm=math.inf, total=1)
    assert both.weight.item() == pytest.approx(-0.1 * 2 * 3 * 2)


def test_a_loss_that_is_not_finite_ends_training(monkeypatch):
    def poisoned(model, batch):
        return model.logits(batch).sum() * math.nan

    with pytest.raises(UserError, match="loss of line is nan.*--lr"):
        train_line(3, loss=poisoned)
    monkeypatch.setattr(Progress, "due", lambda self: True)
    steps = line_steps(3)
    model, optimizer = Line(), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(UserError):
        train_one_epoch(model, steps, {"line": poisoned}, optimizer, linear_schedule(optimizer, 3, 0.0), CPU, total=3)
    assert len(list(steps)) == 2  # it ended where it looked, after the first


def test_to_device_moves_tensors_and_keeps_the_rest():
    batch = {"labels": torch.zeros(2, dtype=torch.float64), "token_ids": torch.zeros(2, 3, dtype=torch.long),
             "mask": torch.zeros(2, dtype=torch.bool), "sents": ["a", "b"], "task": "sts"}
    moved = to_device(batch, torch.device("meta"))
    assert {name: value.dtype for name, value in moved.items() if torch.is_tensor(value)} == {
        "labels": torch.float32, "token_ids": torch.long, "mask": torch.bool}
    assert all(value.device.type == "meta" for value in moved.values() if torch.is_tensor(value))
    assert moved["sents"] == ["a", "b"] and moved["task"] == "sts"
    assert batch["labels"].dtype == torch.float64


def test_progress_off_a_terminal_is_a_plain_line_now_and_then(capsys, monkeypatch):
    clock = SimpleNamespace(now=0, monotonic=lambda: clock.now)
    monkeypatch.setattr(engine, "time", clock)
    with Progress(total=10, label="epoch 0") as progress:
        for clock.now in (5, 25, 30, 50):
            progress.advance(80)
            if progress.due():
                progress.show({"sst": 1.25, "sts": 0.5})
    out, err = capsys.readouterr()
    assert out.splitlines() == ["epoch 0: step 2/10, loss sst 1.250 sts 0.500, 6 examples/s, 100 s left",
                                "epoch 0: step 4/10, loss sst 1.250 sts 0.500, 6 examples/s, 75 s left"]
    assert err == "" and "\r" not in out


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(engine.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(engine.shutil, "get_terminal_size", lambda fallback: SimpleNamespace(columns=80))
    with Progress(total=2, label="epoch 0") as progress:
        progress.advance(80)
        progress.show({"sst": 1.25})
    out, err = capsys.readouterr()
    assert out == "" and "epoch 0" in err and "1/2" in err and "sst 1.250" in err and "examples/s" in err


def test_files_of_flags(tmp_path):
    (tmp_path / "a.args").write_text("# a comment\n--name 'two words'  # another\n\n--count 3 --count 4\n")
    parser = ArgumentParser()
    parser.add_argument("--name")
    parser.add_argument("--count", type=int, action="append")
    args = parser.parse_args([f"@{tmp_path / 'a.args'}", "--name", "later"])
    assert args.name == "later" and args.count == [3, 4]
    assert parser.parse_args([f"@{tmp_path / 'a.args'}"]).name == "two words"
