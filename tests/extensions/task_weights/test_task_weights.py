"""Weights of the tasks' losses by hand. For a model's identity: which of them begin as the plain sum."""

import io
import math

import pytest
import torch

from extensions import TASK_WEIGHTS
from extensions.specs import from_spec
from extensions.task_weights.dynamic_average import DynamicAverage
from extensions.task_weights.fixed import FixedWeights
from extensions.task_weights.loss_scale import LossScale
from extensions.task_weights.uncertainty import Uncertainty

TASKS = ("sst", "para", "sts")


def losses_of(*values, tasks=TASKS):
    return {task: torch.tensor(value, requires_grad=True) for task, value in zip(tasks, values)}


def values_of(losses):
    return {task: loss.item() for task, loss in losses.items()}


def stored(weights):
    """Return the state after a journey through a file."""
    torch.save(weights.state_dict(), buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("kind", [FixedWeights, LossScale, DynamicAverage, Uncertainty])
def test_what_all_are(kind):
    """The plain sum at first (uncertainty: half of the similarity), 0-dim losses with a graph, of the step's tasks."""
    weights = kind(TASKS)
    losses = losses_of(1.5, 0.5, tasks=("sts", "sst"))
    weighted = weights(losses)
    assert values_of(weighted) == {"sts": 1.5 / (2 if kind is Uncertainty else 1), "sst": 0.5}
    sum(weighted.values()).backward()
    assert losses["sts"].grad.item() == (0.5 if kind is Uncertainty else 1) and losses["sst"].grad.item() == 1
    assert {name for name, _ in weights.named_parameters()} == (
        {"s.sst", "s.para", "s.sts"} if kind is Uncertainty else set())
    before = stored(weights)
    weights.after_step({task: loss.detach() for task, loss in losses.items()})
    weights.end_epoch({"sst": 1.0, "para": 2.0, "sts": 3.0})
    changed = any(not torch.equal(a.nan_to_num(), b.nan_to_num())
                  for a, b in zip(before.values(), weights.state_dict().values(), strict=True))
    assert changed == (kind in (LossScale, DynamicAverage))


def test_fixed_by_hand():
    weights = FixedWeights(TASKS, sst=2.0, sts=0.25)
    assert values_of(weights(losses_of(1.5, 0.5, 4.0))) == {"sst": 3.0, "para": 0.5, "sts": 1.0}
    with pytest.raises(ValueError, match="fixed:para=-1: para must be a finite number of at least 0"):
        from_spec("fixed:para=-1", TASK_WEIGHTS)


def test_uncertainty_by_hand():
    """exp(-s) L + s / 2, for the similarity exp(-s) L / 2 + s / 2: 3/2 + ln(2)/2, 6 - ln(2)/2, 0.4/8 + ln(4)/2."""
    weights = Uncertainty(TASKS)
    for task, variance in (("sst", 2.0), ("para", 0.5), ("sts", 4.0)):
        weights.s[task].data.fill_(math.log(variance))
    weighted = weights(losses_of(3.0, 3.0, 0.4))
    assert values_of(weighted) == pytest.approx({
        "sst": 1.5 + math.log(2) / 2, "para": 6 - math.log(2) / 2, "sts": 0.05 + math.log(2)})
    sum(weighted.values()).backward()
    assert [weights.s[task].grad.item() for task in TASKS] == pytest.approx([-1.5 + 0.5, -6 + 0.5, -0.05 + 0.5])
    assert Uncertainty(TASKS, "none").factors == dict.fromkeys(TASKS, 1.0)
    assert Uncertainty(TASKS, "sst+sts").factors == {"sst": 0.5, "para": 1.0, "sts": 0.5}
    assert Uncertainty(("sst",)).factors == {"sst": 1.0}
    with pytest.raises(ValueError, match="regression must be auto, or none, or words of sst, para, sts"):
        from_spec("uncertainty:regression=cola", TASK_WEIGHTS)


def test_uncertainty_is_the_likelihood_and_finds_the_noise():
    """Regression is the negative log likelihood of torch's normal distribution, but for ln(2 pi) / 2; at the minimum
    the variance is the squared error, and for classes twice the cross-entropy. The loss falls in 20 steps."""
    y, f = torch.tensor([1.0, 3.0, -2.0]), torch.tensor([0.5, 1.0, -1.0])
    weights = Uncertainty(("sts", "sst"))
    weights.s["sts"].data.fill_(0.7)
    likelihood = torch.distributions.Normal(f, math.exp(0.35)).log_prob(y)
    loss = weights({"sts": (y - f).square().mean()})["sts"]
    assert loss.item() == pytest.approx(-likelihood.mean().item() - math.log(2 * math.pi) / 2, rel=1e-5)
    optimizer, totals = torch.optim.SGD(weights.parameters(), lr=0.5), []
    for _ in range(200):
        optimizer.zero_grad()
        total = sum(weights(losses_of(1.75, 0.3, tasks=("sts", "sst"))).values())
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[19] < totals[0]
    assert [weights.s[task].exp().item() for task in ("sts", "sst")] == pytest.approx([1.75, 0.6], rel=1e-3)


def test_loss_scale_by_hand():
    """beta = 0.5 and losses 4, 2: v = 2, then 2; means 2 / 0.5 = 4 and 2 / 0.75. A task that is away stands still."""
    weights = LossScale(TASKS, beta=0.5)
    weights.after_step({"sst": torch.tensor(4.0)})
    assert values_of(weights(losses_of(2.0, 5.0))) == {"sst": 0.5, "para": 5.0}
    weights.after_step({"para": torch.tensor(10.0)})
    weights.after_step({"sst": torch.tensor(2.0)})
    losses = losses_of(2.0, 5.0)
    weighted = weights(losses)
    assert values_of(weighted) == pytest.approx({"sst": 2 / (2 / 0.75), "para": 0.5})
    sum(weighted.values()).backward()
    assert losses["sst"].grad.item() == pytest.approx(0.75 / 2)  # the mean is a constant
    again = LossScale(TASKS, beta=0.5)
    again.load_state_dict(stored(weights))
    assert values_of(again(losses_of(2.0, 5.0, 1.0))) == pytest.approx({"sst": 0.75, "para": 0.5, "sts": 1.0})
    sums, (address,) = weights.sums, {weights.sums.data_ptr()}
    weights.after_step({"sts": torch.tensor(-3.0)})
    assert weights.sums is sums and sums.data_ptr() == address  # in place, for CUDA graphs
    assert values_of(weights(losses_of(3.0, tasks=("sts",)))) == {"sts": 1.0}
    weights = LossScale(TASKS)
    for loss, expected in ((0.0, 5.0), (0.0, 5.0), (10.0, None)):  # no positives yet: nothing to scale by
        weights.after_step({"para": torch.tensor(loss)})
        if expected:
            assert values_of(weights(losses_of(2.0, 5.0)))["para"] == expected
    assert values_of(weights(losses_of(2.0, 5.0)))["para"] < 5.0
    with pytest.raises(ValueError, match="beta must be at least 0 and below 1"):
        from_spec("loss-scale:beta=1", TASK_WEIGHTS)


def test_dynamic_average_by_hand():
    """Losses 2, 1, 1 then 1, 1, 2: ratios 1/2, 1, 2. With T = 2, weights exp(1/4), exp(1/2), e over their mean."""
    weights = DynamicAverage(TASKS)
    held = weights.weights
    weights.end_epoch({"sst": 2.0, "para": 1.0, "sts": 1.0})
    assert values_of(weights(losses_of(1.0, 1.0, 1.0))) == dict.fromkeys(TASKS, 1.0)
    state = stored(weights)
    weights = DynamicAverage(TASKS)  # a resumed run
    weights.load_state_dict(state)
    weights.end_epoch({"sst": 1.0, "para": 1.0, "sts": 2.0})
    total = sum(map(math.exp, (0.25, 0.5, 1)))
    expected = {task: 3 * math.exp(x) / total for task, x in zip(TASKS, (0.25, 0.5, 1), strict=True)}
    assert values_of(weights(losses_of(1.0, 1.0, 1.0))) == pytest.approx(expected)
    assert values_of(weights(losses_of(10.0, tasks=("sts",)))) == pytest.approx({"sts": 10 * expected["sts"]})
    assert held.tolist() == [1.0] * 3
    at_one = DynamicAverage(TASKS, T=1.0)
    for losses in ({"sst": 2.0}, {"sst": 1.0, "para": 5.0}):  # the pair task joins later: r = 1 for it and for sts
        at_one.end_epoch(losses)
    total = math.exp(0.5) + 2 * math.e
    assert at_one.weights.tolist() == pytest.approx([3 * math.exp(0.5) / total, *[3 * math.e / total] * 2])
    at_one.end_epoch({"para": 10.0})  # an epoch without SST leaves its ratio
    total = math.exp(0.5) + math.exp(2) + math.e
    assert at_one.weights.tolist() == pytest.approx([3 * math.exp(x) / total for x in (0.5, 2, 1)])
    with pytest.raises(ValueError, match="T must be above 0"):
        from_spec("dwa:T=0", TASK_WEIGHTS)


def test_which_let_all_tasks_count_alike():
    """What the engine asks before it says that weights do little in steps of one task."""
    assert FixedWeights(TASKS).alike and FixedWeights(TASKS, sst=2.0, para=2.0, sts=2.0).alike
    assert not FixedWeights(TASKS, para=0.5).alike and not Uncertainty(TASKS).alike
