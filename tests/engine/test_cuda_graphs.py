"""GraphedStep against the plain step: with a recorder that imitates CUDA graphs on the CPU, and on a GPU for real.

That it ends with the plain step's weights takes the place of a model's five tests.
"""

import copy

import pytest
import torch
import torch.nn as nn

from engine import fused_adamw
from engine.cuda_graphs import GraphedStep
from engine.fused_adamw import FusedAdamW
from engine.step import TrainingStep, part_to_device
from extensions.losses.supervised import ce, mse
from extensions.schedules._steps import Part


class Model(nn.Module):
    """Words' mean, a hidden layer, dropout, a head a task."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden, self.dropout = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Dropout(dropout)
        self.heads = nn.ModuleDict({"sst": nn.Linear(16, 5), "sts": nn.Linear(16, 1)})

    def encode(self, task, batch):
        mask = batch["attention_mask"].unsqueeze(-1)
        return [(self.words(batch["token_ids"]) * mask).sum(1) / mask.sum(1)]

    def score(self, task, encodings):
        return self.heads[task](self.dropout(self.hidden(encodings[0]).tanh())).squeeze(-1)


class FakeGraph:
    """What was recorded, run again: it reads the tensors of the recording and writes over those that came of it."""

    def __init__(self, function, params):
        self.function, self.params = function, params
        self.before = [p.grad for p in params]
        self.losses = function()
        self.after = [p.grad for p in params]

    def replay(self):
        kept = [p.grad for p in self.params]
        for p, grad in zip(self.params, self.before, strict=True):
            p.grad = grad
        losses = self.function()
        with torch.no_grad():
            for p, grad in zip(self.params, self.after, strict=True):
                if grad is not None and grad is not p.grad:
                    grad.copy_(p.grad)
            for task, loss in (losses or {}).items():
                self.losses[task].copy_(loss)
        for p, grad in zip(self.params, kept, strict=True):
            p.grad = grad


class FakeRecorder:
    """A `Recorder` whose capture leaves no trace, as one on a GPU does not."""

    def __init__(self, step):
        self.step, self.calls = step, []

    def on_side_stream(self, function):
        self.calls.append("eager")
        return function()

    def capture(self, function):
        self.calls.append("capture")
        states = [value for state in self.step.optimizer.state.values() for value in state.values()]
        tensors = [*self.step.params, self.step.skipped, *(value for value in states if torch.is_tensor(value))]
        values, rng = [tensor.detach().clone() for tensor in tensors], torch.get_rng_state()
        graph = FakeGraph(function, self.step.params)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(rng)
        return graph, graph.losses

    random_state, restore_random_state = staticmethod(torch.get_rng_state), staticmethod(torch.set_rng_state)


def make_step(dropout=0.0, losses=None, device="cpu", precision="fp32"):
    model = Model(dropout).to(device).train()
    optimizer = FusedAdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    return TrainingStep(model, losses or {"sst": ce, "sts": mse}, optimizer, precision=precision,
                        device=torch.device(device))


def graphed(monkeypatch, limit=64, **options):
    monkeypatch.setattr(fused_adamw, "in_device_memory", lambda device: True)
    step = make_step(**options)
    return GraphedStep(step, limit, FakeRecorder(step))


def batch(task, rows, width, seed, share=1.0):
    """Return a Part of random rows, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    labels = torch.randint(0, 5, (rows,), generator=generator)
    return Part({"token_ids": torch.randint(50, (rows, width), generator=generator),
                 "attention_mask": (torch.arange(width) < lengths).long(), "labels": labels if task == "sst" else
                 labels.float(), "sent_ids": [f"{seed}-{i}" for i in range(rows)]}, share)


def schedule(steps, device="cpu"):
    """Return parts of `steps` steps: two tasks, three shapes, now and then two parts or both tasks in one step."""
    plan = []
    for i in range(steps):
        task, width = ("sst", "sts")[i % 3 == 2], (4, 7, 9)[i * i % 3]
        parts = [{task: batch(task, 6, width, i)}]
        if i % 5 == 4:
            parts = [{"sst": batch("sst", 6, 4, i, 0.5)}, {"sst": batch("sst", 6, 4, -i, 0.5)}]
        if i % 7 == 6:
            parts = [{"sst": batch("sst", 6, 4, i), "sts": batch("sts", 6, 4, i)}]
        plan.append([{task: part_to_device(b, device) for task, b in part.items()} for part in parts])
    return plan


def train(step, plan):
    """Return the losses of the steps, under a falling learning rate."""
    optimizer, losses = getattr(step, "step", step).optimizer, []
    for i, parts in enumerate(plan):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / 100)
        losses.append({task: float(loss) for task, loss in step(parts).items()})
    return losses


def assert_same_state(step, other):
    for (name, p), q in zip(step.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)
        assert step.optimizer.state[p]["step"] == other.optimizer.state[q]["step"], name


def test_equals_the_plain_step_over_50_steps(monkeypatch):
    plain, graphs = make_step(), graphed(monkeypatch)
    expected, losses = train(plain, schedule(50)), train(graphs, schedule(50))
    assert losses == [pytest.approx(loss, rel=1e-5, abs=1e-6) for loss in expected]
    assert_same_state(plain, graphs.step)
    replayed = 50 - graphs.recorder.calls.count("eager")
    assert replayed > 40 > graphs.recorder.calls.count("capture")
    assert all(p.grad is None for p in graphs.step.params)  # nothing holds on to the graphs' memory


def test_the_first_batch_of_a_kind_is_a_plain_step_the_second_is_recorded(monkeypatch):
    graphs = graphed(monkeypatch)
    kinds = [batch("sst", 6, 4, 0), batch("sst", 6, 4, 1), batch("sst", 6, 4, 2), batch("sst", 6, 5, 3),
             batch("sst", 6, 4, 4, share=0.5)]
    train(graphs, [[{"sst": b}] for b in kinds] + [[{"sts": batch("sts", 6, 4, 5)}]])
    assert graphs.recorder.calls == ["eager", "capture", "capture", "eager", "eager", "eager"]
    first = graphs([{"sst": kinds[0]}])["sst"]
    value = float(first)
    graphs([{"sst": kinds[1]}])
    assert float(first) == value  # not written over by the next replay


def test_recorded_anew_when_step_counts_come_apart(monkeypatch):
    both = [{"sst": batch("sst", 6, 4, 1), "sts": batch("sts", 6, 4, 2)}]
    plan = [both, both, both, [{"sst": batch("sst", 6, 4, 3)}], both, both]
    plain, graphs = make_step(), graphed(monkeypatch)
    assert train(graphs, plan) == [pytest.approx(loss, rel=1e-5) for loss in train(plain, plan)]
    assert_same_state(plain, graphs.step)
    assert graphs.recorder.calls == ["eager", "capture", "capture", "eager", "capture", "capture"]


def test_the_least_recently_used_graphs_make_way(monkeypatch):
    graphs = graphed(monkeypatch, limit=2)
    widths = [4, 4, 5, 5, 4, 6, 6, 4, 5]  # 6 drives 5 out
    plan = [[{"sst": batch("sst", 6, width, i)}] for i, width in enumerate(widths)]
    plain = make_step()
    assert train(graphs, plan) == [pytest.approx(loss, rel=1e-5) for loss in train(plain, plan)]
    assert len(graphs.recordings) == 2 and graphs.recorder.calls.count("capture") == 2 * 4


def test_several_processes_sum_gradients_between_the_two_graphs(monkeypatch):
    plain, graphs = make_step(), graphed(monkeypatch)
    for step in (plain, graphs.step):
        def all_reduce(losses, step=step):  # as if another process had the same
            for value in [*(p.grad for p in step.params if p.grad is not None), *losses.values()]:
                value.mul_(2)
        step.all_reduce, step.max_grad_norm = all_reduce, 1e9
    monkeypatch.setattr("engine.distributed.world_size", lambda: 2)
    assert train(graphs, schedule(20)) == [pytest.approx(loss, rel=1e-5) for loss in train(plain, schedule(20))]
    assert_same_state(plain, graphs.step)


@pytest.mark.parametrize("failing", [1, 2, 4])  # a gradient's capture, an update's, a later kind's
def test_a_failed_capture_falls_back_as_if_nothing_had_happened(monkeypatch, capsys, failing):
    plain, graphs = make_step(dropout=0.5), graphed(monkeypatch, dropout=0.5)
    capture = graphs.recorder.capture

    def fail(function):
        recorded = capture(function)
        if graphs.recorder.calls.count("capture") == failing:
            torch.rand(3)  # the generator has moved
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return recorded

    monkeypatch.setattr(graphs.recorder, "capture", fail)
    torch.manual_seed(5)
    expected = train(plain, schedule(20))
    torch.manual_seed(5)
    assert train(graphs, schedule(20)) == [pytest.approx(loss, rel=1e-5) for loss in expected]
    assert_same_state(plain, graphs.step)
    assert capsys.readouterr().out == ("no CUDA graphs from here on, so slower: RuntimeError: operation not permitted "
                                       "when stream is capturing\n")


def test_what_broke_a_capture_is_named(monkeypatch, capsys):
    graphs = graphed(monkeypatch)

    def capture(function):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(graphs.recorder, "capture", capture)
    train(graphs, [[{"sst": batch("sst", 6, 4, i)}] for i in range(2)])
    assert capsys.readouterr().out.endswith("RuntimeError: operation not permitted when stream is capturing\n")


def check_lack_of_memory(plain, graphs, plan, monkeypatch, capsys):
    """Check that the graphs make way for the first step that finds no memory beside them."""
    step, ran_out = graphs.recorder.on_side_stream, []

    def full(function):
        if graphs.recordings:
            torch.rand(3)  # the generator has moved
            ran_out.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")
        return step(function)

    monkeypatch.setattr(graphs.recorder, "on_side_stream", full)
    torch.manual_seed(5)
    expected = train(plain, plan)
    torch.manual_seed(5)
    assert train(graphs, plan) == [pytest.approx(loss, rel=1e-5) for loss in expected]
    assert_same_state(plain, graphs.step)
    assert ran_out == [True] and not graphs.recordings and not graphs.buffers
    assert "slower: OutOfMemoryError: CUDA out" in capsys.readouterr().out


def test_where_the_graphs_leave_no_memory_the_step_is_taken_without_them(monkeypatch, capsys):
    plain, graphs = make_step(dropout=0.5), graphed(monkeypatch, dropout=0.5)
    check_lack_of_memory(plain, graphs, schedule(20), monkeypatch, capsys)


def test_without_graphs_too_little_memory_is_an_error(monkeypatch):
    graphs = graphed(monkeypatch)

    def full(function):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    monkeypatch.setattr(graphs.recorder, "on_side_stream", full)
    with pytest.raises(torch.OutOfMemoryError):
        train(graphs, schedule(1))


def test_a_loss_that_reads_a_list_is_not_recorded(monkeypatch, capsys):
    def stale(forward):
        return ce(forward) + len(forward.batch["sent_ids"])

    graphs = graphed(monkeypatch, losses={"sst": stale})
    train(graphs, [[{"sst": batch("sst", 6, 4, i)}] for i in range(3)])
    assert "KeyError: 'sent_ids'" in capsys.readouterr().out and not graphs.active


def test_a_loss_that_is_not_finite_stops_the_updates(monkeypatch):
    graphs = graphed(monkeypatch)
    plan = [[{"sts": batch("sts", 6, 4, i)}] for i in range(6)]
    train(graphs, plan[:3])
    weights = copy.deepcopy(graphs.step.model.state_dict())
    plan[3][0]["sts"].batch["labels"][0] = float("nan")
    train(graphs, plan[3:])
    assert graphs.skipped == 3
    assert all(torch.equal(p, weights[name]) for name, p in graphs.step.model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 2e-2)])
def test_on_a_gpu_equals_the_plain_step_over_50_steps(precision, tolerance):
    plain, wrapped = (make_step(device="cuda", precision=precision) for _ in range(2))
    expected, graphs = train(plain, schedule(50, "cuda")), GraphedStep(wrapped)
    assert train(graphs, schedule(50, "cuda")) == [pytest.approx(loss, rel=tolerance, abs=tolerance)
                                                   for loss in expected]
    assert graphs.active and graphs.recordings
    assert [plain.optimizer.state[p]["step"] for p in plain.params] == [
        wrapped.optimizer.state[p]["step"] for p in wrapped.params]


@pytest.mark.gpu
def test_on_a_gpu_dropout_masks_are_not_repeated():
    step = make_step(dropout=0.5, device="cuda")
    step.optimizer.param_groups[0]["lr"] = 0.0
    graphs, parts = GraphedStep(step), schedule(1, "cuda")[0]
    assert len({float(graphs(parts)["sst"]) for _ in range(10)}) == 10


@pytest.mark.gpu
def test_on_a_gpu_a_step_that_waits_for_the_device_falls_back(capsys):
    def waits(forward):
        loss = ce(forward)
        return loss if loss.item() else loss

    graphs = GraphedStep(make_step(dropout=0.5, losses={"sst": waits}, device="cuda"))
    parts = schedule(1, "cuda")[0]
    assert len({float(graphs(parts)["sst"]) for _ in range(5)}) == 5  # random numbers still work
    assert capsys.readouterr().out.count("no CUDA graphs") == 1
    torch.cuda.empty_cache()  # refused while the allocator believes that a graph is recorded
    again = GraphedStep(make_step(device="cuda"))
    train(again, schedule(10, "cuda"))
    assert again.recordings
