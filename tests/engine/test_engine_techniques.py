"""What the training step does with the techniques that it is given: each update by hand.

That the techniques themselves do what their papers say is in their own files; here it is that they take part.
"""

import math

import pytest
import torch

from engine.step import TrainingStep, make_step
from extensions.penalties.bregman import Bregman
from extensions.schedules._steps import Part
from extensions.task_weights.fixed import FixedWeights
from extensions.task_weights.loss_scale import LossScale
from tests.engine.test_step import CPU, Line

LR = 0.1


def batches(weight=1.0):
    """Return a step of two tasks, whose losses (`LOSSES`) are 3 w and 5 w; `weight` is the schedule's of the second."""
    batch = {"labels": torch.zeros(1), "sent_ids": ["a"]}
    return [{"sst": Part({**batch, "x": torch.tensor([3.0])}),
             "sts": Part({**batch, "x": torch.tensor([5.0])}, weight=weight)}]


LOSSES = dict.fromkeys(("sst", "sts"), lambda forward: forward.logits.sum())


def step_of(model, **options):
    return TrainingStep(model, LOSSES, torch.optim.SGD(model.parameters(), lr=LR), device=CPU, precision="fp32",
                        max_grad_norm=math.inf, **options)


def test_the_tasks_weights_and_the_schedules():
    model = Line(1.0)
    losses = step_of(model, weights=FixedWeights(("sst", "sts"), sst=2, sts=0.5))(batches(weight=0.25))
    assert model.weight.item() == pytest.approx(1 - LR * (2 * 3 + 0.5 * 0.25 * 5))
    assert losses == {"sst": 3, "sts": 5}  # as they are, not weighted


def test_weights_that_follow_the_losses():
    """At first every mean is 1, so the gradient is 3 + 5; then the means are 3 and 5, and it is 3 / 3 + 5 / 5."""
    model = Line(1.0)
    step = step_of(model, weights=LossScale(("sst", "sts"), beta=0.5))
    step(batches())
    assert model.weight.item() == pytest.approx(1 - LR * 8)
    step(batches())
    assert model.weight.item() == pytest.approx(1 - LR * 10, abs=1e-6)


def test_a_teacher_that_follows_the_model():
    """Before the first step it is the model, and the penalty nothing; then half way to w = 0.2, and it pulls."""
    model, teacher = Line(1.0), Bregman(weight=1.0, beta=0.5)
    step = step_of(model, penalties=[teacher])
    step.losses = {"sts": LOSSES["sts"]}
    step([{"sts": batches()[0]["sts"]}])
    assert model.weight.item() == pytest.approx(1 - LR * 5)
    assert teacher.teacher.weight.item() == pytest.approx(1 - LR * 5 / 2)
    step([{"sts": batches()[0]["sts"]}])
    pull = 2 * 25 * (0.5 - 0.75)  # of (5 w - 5 w')^2
    assert model.weight.item() == pytest.approx(0.5 - LR * (5 + pull))


def test_learned_weights_are_trained_at_a_rate_of_their_own():
    """exp(-s) L + s / 2 for sst and half that loss for sts: at s = 0 the slopes are -3 + 1/2 and -5/2 + 1/2."""
    model = Line(1.0)
    model.bert = torch.nn.Module()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    step = make_step(model, LOSSES, optimizer, CPU, task_weights="uncertainty", lr=LR, compile="none",
                     precision="fp32", max_grad_norm=math.inf, joint=True)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(LR, 0), (1e-3, 0)]
    step(batches())
    assert model.weight.item() == pytest.approx(1 - LR * (3 + 5 / 2))
    assert {task: s.item() for task, s in step.weights.s.items()} == pytest.approx({"sst": 2.5e-3, "sts": 2e-3})
