"""JointGraphedStep against the plain step: steps of several tasks, with a recorder that imitates CUDA graphs.

That it ends with the plain step's weights takes the place of a model's five tests.
"""

import pytest
import torch

from engine import fused_adamw
from engine.joint_graphs import JointGraphedStep
from engine.step import part_to_device
from extensions import WeightPenalty
from extensions.task_weights._task_weights import TaskWeights
from extensions.task_weights.uncertainty import Uncertainty
from tests.engine.test_cuda_graphs import (
    FakeRecorder,
    assert_same_state,
    batch,
    check_lack_of_memory,
    make_step,
    train,
)


class Recorder(FakeRecorder):
    """A recorder whose capture leaves the buffers, too, as they were."""

    graphs = None

    def capture(self, function):
        tensors = [*self.graphs.buffers.values(), *self.graphs.totals.values()]
        values = [tensor.clone() for tensor in tensors]
        result = super().capture(function)
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
        return result


class Decay(WeightPenalty):
    """A loss of the weights, once a step."""

    def of_weights(self, model):
        return 0.1 * sum(p.square().sum() for p in model.hidden.parameters())


def joint_step(monkeypatch, graphs=False, limit=64, penalties=(), weights=None, **options):
    monkeypatch.setattr(fused_adamw, "in_device_memory", lambda device: True)
    step = make_step(**options)
    step.weight_losses = [penalty.of_weights for penalty in penalties]
    step.weights = weights or TaskWeights(step.losses)
    if list(step.weights.parameters()):
        step.optimizer.add_param_group({"params": list(step.weights.parameters()), "weight_decay": 0.0})
        step.params += list(step.weights.parameters())
    if not graphs:
        return step
    recorder = Recorder(step)
    recorder.graphs = JointGraphedStep(step, limit, recorder)
    return recorder.graphs


def plan_of(steps, device="cpu"):
    """Return parts of steps of both tasks in 4 x 3 widths, now and then of two parts, or of one task."""
    plan = []
    for i in range(steps):
        parts = [{"sst": batch("sst", 6, 4 + i % 4, i), "sts": batch("sts", 4, 5 + i % 3, -i)}]
        if i % 5 == 4:
            parts = [{"sst": batch("sst", 3, 4, i + k, 0.5), "sts": batch("sts", 2, 5, k - i, 0.5)} for k in range(2)]
        if i % 9 == 8:
            parts = [{"sst": batch("sst", 6, 4, i)}]
        plan.append([{task: part_to_device(b, device) for task, b in part.items()} for part in parts])
    return plan


@pytest.mark.parametrize("options", [
    {}, {"penalties": [Decay()]}, {"weights": "uncertainty"}, {"penalties": [Decay()], "weights": "uncertainty"}])
def test_equals_the_plain_step_over_60_steps(options, monkeypatch):
    def made(graphs):
        weights = {"weights": Uncertainty(("sst", "sts"))} if "weights" in options else {}
        return joint_step(monkeypatch, graphs, **{**options, **weights})
    plain, graphs = made(False), made(True)
    expected, losses = train(plain, plan_of(60)), train(graphs, plan_of(60))
    assert losses == [pytest.approx(loss, rel=1e-5, abs=1e-6) for loss in expected]
    assert_same_state(plain, graphs.step)
    for p, q in zip(plain.weights.parameters(), graphs.step.weights.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    # 4 + 3 kinds in whole steps and 1 + 1 in half ones, not 12 combinations; steps of one task have their own update.
    assert len(graphs.recordings) == 9 and set(graphs.updates) == {("sst", "sts"), ("sst",)}
    assert graphs.recorder.calls.count("eager") < 12
    assert all(p.grad is None for p in graphs.step.params)


def test_losses_are_not_written_over_by_the_next_step(monkeypatch):
    graphs = joint_step(monkeypatch, graphs=True)
    plan = plan_of(1) * 4
    found = [graphs(parts) for parts in plan]
    assert len({float(losses["sst"]) for losses in found}) == 4


def test_few_recordings_are_kept(monkeypatch):
    plain, graphs = joint_step(monkeypatch), joint_step(monkeypatch, graphs=True, limit=3)
    assert train(graphs, plan_of(30)) == [pytest.approx(loss, rel=1e-5) for loss in train(plain, plan_of(30))]
    assert len(graphs.recordings) == 3


def test_several_processes_sum_gradients_before_the_update(monkeypatch):
    plain, graphs = joint_step(monkeypatch), joint_step(monkeypatch, graphs=True)
    for step in (plain, graphs.step):
        def all_reduce(losses, step=step):  # as if another process had the same
            for value in [*(p.grad for p in step.params if p.grad is not None), *losses.values()]:
                value.mul_(2)
        step.all_reduce, step.max_grad_norm = all_reduce, 1e9
    assert train(graphs, plan_of(20)) == [pytest.approx(loss, rel=1e-5) for loss in train(plain, plan_of(20))]
    assert_same_state(plain, graphs.step)


@pytest.mark.parametrize("failing", [1, 2, 3, 5])  # a batch's capture, another's, the update's, a later batch's
def test_a_failed_capture_falls_back_as_if_nothing_had_happened(monkeypatch, capsys, failing):
    plain, graphs = joint_step(monkeypatch, dropout=0.5), joint_step(monkeypatch, graphs=True, dropout=0.5)
    capture = graphs.recorder.capture

    def fail(function):
        recorded = capture(function)
        if graphs.recorder.calls.count("capture") == failing:
            torch.rand(3)  # the generator has moved
            raise RuntimeError("operation not permitted when stream is capturing")
        return recorded

    monkeypatch.setattr(graphs.recorder, "capture", fail)
    torch.manual_seed(5)
    expected = train(plain, plan_of(20))
    torch.manual_seed(5)
    assert train(graphs, plan_of(20)) == [pytest.approx(loss, rel=1e-5) for loss in expected]
    assert_same_state(plain, graphs.step)
    assert not graphs.active and capsys.readouterr().out.count("no CUDA graphs from here on") == 1


def test_where_the_graphs_leave_no_memory_the_step_is_taken_without_them(monkeypatch, capsys):
    plain, graphs = joint_step(monkeypatch, dropout=0.5), joint_step(monkeypatch, graphs=True, dropout=0.5)
    check_lack_of_memory(plain, graphs, plan_of(1) * 3 + plan_of(20), monkeypatch, capsys)


def test_forgetting_records_anew(monkeypatch):
    plain, graphs = joint_step(monkeypatch), joint_step(monkeypatch, graphs=True)
    expected, losses = train(plain, plan_of(12)), train(graphs, plan_of(12))
    plain.max_grad_norm = graphs.step.max_grad_norm = 1e-3  # a number in the graph of the update
    graphs.forget()
    assert not graphs.recordings and not graphs.updates
    expected, losses = expected + train(plain, plan_of(12)), losses + train(graphs, plan_of(12))
    assert losses == [pytest.approx(loss, rel=1e-5, abs=1e-6) for loss in expected]
    assert_same_state(plain, graphs.step)


@pytest.mark.gpu
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 2e-2)])
def test_on_a_gpu_equals_the_plain_step_over_60_steps(precision, tolerance):
    plain, wrapped = (make_step(device="cuda", precision=precision) for _ in range(2))
    expected, graphs = train(plain, plan_of(60, "cuda")), JointGraphedStep(wrapped)
    assert train(graphs, plan_of(60, "cuda")) == [pytest.approx(loss, rel=tolerance, abs=tolerance)
                                                  for loss in expected]
    assert graphs.active and len(graphs.recordings) == 9
