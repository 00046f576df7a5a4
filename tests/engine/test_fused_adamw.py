"""FusedAdamW against AdamW, the float64 reference and the course's check; plans whose parameters come apart.

An optimizer has no output: that it moves as AdamW does takes the place of a model's five tests.
"""

import copy

import numpy as np
import pytest
import torch

import optimizer_test
from engine import fused_adamw
from engine.fused_adamw import FusedAdamW
from optimizer import AdamW
from tests.course.test_optimizer import run
from tests.helpers.adamw_reference import adamw

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(params=["numbers", "tensors"])
def learning_rate(request, monkeypatch):
    """Hand learning rates over as on the CPU, as Python's numbers, and as on CUDA, in device memory."""
    monkeypatch.setattr(fused_adamw, "in_device_memory", lambda device: request.param == "tensors")


def parameters():
    """Return six parameters: large, a vector, a single number, empty, float64, bfloat16."""
    torch.manual_seed(0)
    shapes = [((37, 19), torch.float32), ((5,), torch.float32), ((), torch.float32), ((0, 3), torch.float32),
              ((4, 4), torch.float64), ((6,), torch.bfloat16)]
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape, dtype in shapes]


def groups(params, **settings):
    return [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 3e-4, "eps": 1e-3, **settings}]


def give_gradients(params, step):
    """Write the gradients of a step; each parameter misses some, as the head of a task that was not drawn."""
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(params):
        there = (step + i) % (i + 2) != 0
        p.grad = (10.0 ** -(step % 7) * torch.randn(p.shape, generator=generator)).to(p.dtype) if there else None


def train(optimizer, steps):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        give_gradients(params, step)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - step / 400)
        optimizer.step()
    return params


@pytest.mark.parametrize("settings", [{}, {"correct_bias": False}, {"betas": (0.5, 0.9), "weight_decay": 0.01}])
def test_equals_the_plain_optimizer_over_300_steps(learning_rate, settings):
    plain = AdamW(groups(parameters(), **settings))
    fused = FusedAdamW(groups(parameters(), **settings))
    for p, q in zip(train(plain, range(300)), train(fused, range(300)), strict=True):
        torch.testing.assert_close(q, p, **CLOSE)
        assert plain.state[p]["step"] == fused.state[q]["step"] > 100
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(fused.state[q][name], plain.state[p][name], **CLOSE)


def test_the_kernel_and_not_the_parent_updates_full_precision(monkeypatch):
    p = torch.nn.Parameter(torch.ones(3))
    monkeypatch.setattr(AdamW, "_update", None)
    p.grad = torch.ones(3)
    FusedAdamW([p]).step()
    assert (p < 1).all()


@pytest.mark.parametrize("settings", [{"lr": 0.1, "weight_decay": 0.5}, {"betas": (0.0, 0.0), "eps": 1e-3},
                                      {"correct_bias": False, "weight_decay": 0.01}, {"eps": 1e-2}])
def test_matches_the_float64_reference(learning_rate, settings):
    rng = np.random.default_rng(1)
    start = rng.normal(size=(3, 4))
    gradients = rng.normal(size=(30, 3, 4)) * 10.0 ** rng.integers(-6, 1, size=(3, 4))
    expected = adamw(start, lambda p, t: gradients[t], len(gradients), **settings)
    actual = run(FusedAdamW, torch.from_numpy(start).float(), torch.from_numpy(gradients), **settings)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_decay_is_not_rounded_like_its_factor(learning_rate):
    # In float32, 1 - 9e-8 is 1 - 12e-8.
    settings = {"lr": 1e-5, "weight_decay": 0.009}
    start, gradients = torch.linspace(1.0, 2.0, 1000), torch.zeros(100, 1000)
    assert torch.equal(run(FusedAdamW, start, gradients, **settings), run(AdamW, start, gradients, **settings))


def test_passes_the_courses_check(learning_rate):
    assert optimizer_test.differences(FusedAdamW) == []


@pytest.mark.parametrize("first, then", [(AdamW, FusedAdamW), (FusedAdamW, AdamW)])
def test_a_state_dict_goes_on_in_the_other_class(first, then):
    begun = first(groups(parameters()))
    saved = copy.deepcopy([p.detach() for p in train(begun, range(10))]), copy.deepcopy(begun.state_dict())
    assert all(type(state["step"]) is int for state in saved[1]["state"].values())
    taken_up = then(groups([torch.nn.Parameter(p) for p in saved[0]]), lr=77.0)
    taken_up.load_state_dict(saved[1])
    for p, q in zip(train(begun, range(10, 20)), train(taken_up, range(10, 20)), strict=True):
        torch.testing.assert_close(q, p, **CLOSE)
    assert begun.state_dict().keys() == taken_up.state_dict().keys()
    assert begun.param_groups[0].keys() == taken_up.param_groups[0].keys()


def test_a_plan_goes_on_updating_the_same_tensors_until_its_parameters_come_apart(learning_rate):
    a, b, twin = (torch.nn.Parameter(torch.ones(4)) for _ in range(3))
    for p in (a, b, twin):
        p.grad = torch.ones(4)
    optimizer, plain = FusedAdamW([a, b], lr=0.1, weight_decay=0.1), AdamW([twin], lr=0.1, weight_decay=0.1)
    plan = optimizer.plan()
    for step in range(3):
        for kind, p in ((optimizer, a), (plain, twin)):
            kind.param_groups[0]["lr"] /= 2
            p.grad.fill_(step)
        assert plan.fits()
        plan.advance()
        plan.apply()
        plain.step()
    torch.testing.assert_close(a, twin, **CLOSE)

    b.grad = None
    optimizer.step()  # of a alone
    before = str(optimizer.state_dict())
    assert not plan.fits() and str(optimizer.state_dict()) == before
    b.grad = torch.ones(4)
    plan = optimizer.plan()
    plan.advance()
    assert optimizer.state[a]["step"] == 5 and optimizer.state[b]["step"] == 4

    plan = optimizer.plan()
    optimizer.load_state_dict(optimizer.state_dict())  # other tensors from here on
    assert not plan.fits()


def test_skip_leaves_everything_as_it_is(learning_rate):
    params = parameters()
    give_gradients(params, 1)
    optimizer = FusedAdamW(groups(params))
    plan = optimizer.plan()
    start = copy.deepcopy([p.detach() for p in params])
    plan.advance()
    plan.apply(skip=torch.tensor(1.0))
    assert all(torch.equal(p, q) for p, q in zip(params, start, strict=True))
    assert all(not state["exp_avg"].any() for state in optimizer.state.values())
    plan.apply(skip=torch.tensor(0.0))
    assert not torch.equal(params[0], start[0]) and not torch.equal(params[5], start[5])


def test_sparse_gradients_are_refused_and_the_closure_runs_with_gradients_on():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        FusedAdamW(embedding.parameters()).step()
    p = torch.nn.Parameter(torch.tensor([3.0]))
    with torch.no_grad():
        assert FusedAdamW([p]).step(lambda: (p**2).sum()).requires_grad


def test_gradients_of_another_layout_take_the_parents_path():
    p, q = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    p.grad = torch.arange(12.0).view(4, 3).t()
    q.grad = p.grad.contiguous()
    for kind, param in ((FusedAdamW, p), (AdamW, q)):
        kind([param], lr=0.1).step()
    torch.testing.assert_close(p, q)
