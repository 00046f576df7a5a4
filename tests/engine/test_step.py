"""One step and one epoch by hand-made cases: learning rate, clipping, NaN, moving a batch, progress, files of flags."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine import progress as progress_module
from engine.parser import ArgumentParser
from engine.progress import MeanLosses, Progress
from engine.step import TrainingStep, lr_factor, part_to_device, set_learning_rates, to_device
from extensions import TASK_LOSSES
from extensions.schedules._steps import Part

CPU = torch.device("cpu")


class Line(nn.Module):
    """One weight; the logits are weight * x."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def encode(self, task, batch):
        return [batch["x"]]

    def score(self, task, encodings):
        return self.weight * encodings[0]


def line_steps(n):
    """Yield n steps {"line": Part} whose best weight is 100."""
    for _ in range(n):
        yield {"line": Part({"x": torch.ones(2), "labels": torch.full((2,), 100.0), "sent_ids": ["a", "b"]})}


def step_of(model, loss=TASK_LOSSES["mse"], lr=0.1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return TrainingStep(model, {"line": loss}, optimizer, device=CPU, precision="fp32", **options)


def train_line(n, weight=0.0, **options):
    model = Line(weight)
    step = step_of(model, **options)
    losses = [step([batches])["line"].item() for batches in line_steps(n)]
    return model.weight.item(), losses, step


def test_learning_rates_by_hand():
    """4 steps up, 6 down."""
    rates = [lr_factor(step, 10, warmup=0.35) for step in range(11)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert lr_factor(0, 4, 0.0) == lr_factor(3, 4, 1.0) == 1
    cosine = [lr_factor(step, 6, 0.3, "cosine") for step in range(2, 7)]
    assert cosine == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])
    assert [lr_factor(step, 6, 0.3, "constant") for step in (0, 1, 2, 5)] == [0.5, 1, 1, 1]


def test_cosine_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert 2 * lr_factor(step, 20, 0.0, "cosine") == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_every_group_keeps_its_own_peak():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (2.0, 1.0)])
    for factor in (0.5, 1.0, 0.25):
        set_learning_rates(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


def test_a_step_is_loss_gradient_clip_update():
    """The gradient, 2 (w - 100), is clipped to 1."""
    assert train_line(2)[:2] == (pytest.approx(0.2), pytest.approx([100**2, 99.9**2]))
    assert train_line(2, max_grad_norm=1e9)[0] == pytest.approx(36)  # 0.1 * 200, then 0.1 * 160
    assert train_line(1, weight=99.9, max_grad_norm=10.0)[0] == pytest.approx(99.92)  # 0.2 is below the limit


def test_the_losses_of_two_tasks_add_up():
    model = Line()
    step = step_of(model, max_grad_norm=math.inf)
    step.losses = dict.fromkeys(("one", "two"), lambda forward: 3 * forward.logits.sum())
    step([{name: next(line_steps(1))["line"] for name in ("one", "two")}])
    assert model.weight.item() == pytest.approx(-0.1 * 2 * 3 * 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_from_a_loss_that_is_not_finite_on_the_weights_stay(bad):
    calls = []

    def loss(forward):
        calls.append(1)
        return TASK_LOSSES["mse"](forward) * (bad if len(calls) == 3 else 1)

    weight, losses, step = train_line(6, loss=loss)
    assert weight == pytest.approx(0.2) and not math.isfinite(losses[2]) and step.skipped == 4


def test_a_gradient_that_is_not_finite_is_no_update_either():
    weight, losses, step = train_line(1, loss=lambda forward: (forward.logits * 0).sqrt().sum())
    assert losses == [0] and weight == 0 and step.skipped == 1


def test_parts_of_unequal_size_give_the_update_of_the_whole():
    x, labels = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 5.0, 1.0])

    def batch(rows):
        return {"line": Part({"x": x[rows], "labels": labels[rows], "sent_ids": rows}, share=len(rows) / 3)}

    weights, losses = [], []
    for parts in ([[0, 1, 2]], [[0, 2], [1]], [[0], [1], [2]]):
        model = Line(0.5)
        losses.append(step_of(model, max_grad_norm=1e9)([batch(rows) for rows in parts])["line"].item())
        weights.append(model.weight.item())
    assert weights == pytest.approx([weights[0]] * 3) and losses == pytest.approx([losses[0]] * 3)


def test_mean_losses_add_up():
    first, second = MeanLosses(), MeanLosses({"a": 1.0}, {"a": 3})
    for value in (1.0, 2.0):
        first.add({"a": torch.tensor(value)})
    first.add({"b": torch.tensor(7.0)})
    assert first.means() == {"a": 1.5, "b": 7.0} and second.merged(first).means() == {"a": 0.8, "b": 7.0}
    again = MeanLosses(**first.state())
    again.add({"a": torch.tensor(6.0)})
    assert again.means() == {"a": 3.0, "b": 7.0} and first.means()["a"] == 1.5


def test_to_device_moves_tensors_and_keeps_the_rest():
    batch = {"labels": torch.zeros(2, dtype=torch.float64), "token_ids": torch.zeros(2, 3, dtype=torch.long),
             "mask": torch.zeros(2, dtype=torch.bool), "sents": ["a", "b"]}
    moved = to_device(batch, torch.device("meta"))
    assert {name: value.dtype for name, value in moved.items() if torch.is_tensor(value)} == {
        "labels": torch.float32, "token_ids": torch.long, "mask": torch.bool}
    assert all(value.device.type == "meta" for value in moved.values() if torch.is_tensor(value))
    assert moved["sents"] == ["a", "b"]
    part = part_to_device(Part(batch, share=0.5, weight=2.0), torch.device("meta"))
    assert part.batch["labels"].device.type == "meta" and part[1:] == (0.5, 2.0)
    assert batch["labels"].dtype == torch.float64


def test_progress_off_a_terminal_is_a_plain_line_now_and_then(capsys, monkeypatch):
    clock = SimpleNamespace(now=0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress_module, "time", clock)
    progress = Progress(total=10, label="epoch 1")
    for clock.now in (5, 25, 30, 50):
        progress.advance(80)
        if progress.due():
            progress.show({"sst": 1.25, "sts": 0.5})
    out, err = capsys.readouterr()
    assert out.splitlines() == ["epoch 1: step 2/10, loss sst 1.250 sts 0.500, 6 examples/s, 100 s left",
                                "epoch 1: step 4/10, loss sst 1.250 sts 0.500, 6 examples/s, 75 s left"]
    assert err == "" and "\r" not in out


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress_module.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress_module.shutil, "get_terminal_size", lambda fallback: SimpleNamespace(columns=80))
    progress = Progress(total=2, label="epoch 1")
    progress.advance(80)
    progress.show({"sst": 1.25})
    progress.close()
    out, err = capsys.readouterr()
    assert out == "" and "epoch 1" in err and "1/2" in err and "sst 1.250" in err and "examples/s" in err


def test_files_of_flags(tmp_path):
    (tmp_path / "a.args").write_text("# a comment\n--name 'two words'  # another\n\n--count 3 --count 4\n")
    parser = ArgumentParser()
    parser.add_argument("--name")
    parser.add_argument("--count", type=int, action="append")
    args = parser.given([f"@{tmp_path / 'a.args'}", "--name", "later"])
    assert args == {"name": "later", "count": [3, 4]}
    assert parser.given([f"@{tmp_path / 'a.args'}"])["name"] == "two words"
