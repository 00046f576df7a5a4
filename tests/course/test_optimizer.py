"""AdamW against its float64 reference and against torch.optim; state, groups, closure, errors."""

import copy
import io

import numpy as np
import pytest
import torch

from optimizer import AdamW
from tests.helpers.adamw_reference import adamw


def run(optimizer_class, start, gradients, **settings):
    """Return the parameter after one step for each of `gradients`."""
    p = torch.nn.Parameter(torch.as_tensor(start).clone())
    optimizer = optimizer_class([p], **settings)
    for gradient in gradients:
        p.grad = torch.as_tensor(gradient, dtype=p.dtype)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("settings", [
    {},
    {"lr": 0.1, "weight_decay": 0.5},
    {"betas": (0.5, 0.9), "eps": 1e-2},
    {"betas": (0.0, 0.0), "eps": 1e-3},
    {"correct_bias": False, "weight_decay": 0.01, "eps": 1e-8},
    {"lr": 0.0, "weight_decay": 0.1},
])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_matches_the_float64_reference(settings, dtype, tolerance):
    rng = np.random.default_rng(1)
    start = torch.from_numpy(rng.normal(size=(3, 4))).to(dtype)
    gradients = torch.from_numpy(rng.normal(size=(30, 3, 4)) * 10.0 ** rng.integers(-6, 1, size=(3, 4))).to(dtype)
    expected = adamw(start.double().numpy(), lambda p, t: gradients[t].double().numpy(), len(gradients), **settings)
    actual = run(AdamW, start, gradients, **settings)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_equals_torch_optim_where_the_formulas_agree():
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 7), torch.randn(50, 5, 7)
    settings = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 0.0}  # no eps to rescale
    expected = run(torch.optim.AdamW, start, gradients, weight_decay=0.0, **settings)
    torch.testing.assert_close(run(AdamW, start, gradients, **settings), expected)


def test_the_closure_runs_with_gradients_on():
    p = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = AdamW([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert [optimizer.step(closure).item(), optimizer.step(closure).item()] == pytest.approx([9.0, 2.9**2])
    assert AdamW([p]).step() is None


def test_groups_dtypes_and_parameters_without_gradient():
    a, b, c, d = (torch.nn.Parameter(torch.ones(2)) for _ in range(4))
    b.data = b.data.double()
    optimizer = AdamW([{"params": [a, b, c]}, {"params": [d], "lr": 0.5, "weight_decay": 0.1}], lr=0.1)
    for t in range(3):
        for p in (a, b, d):
            p.grad = torch.full_like(p, 0.3)
        c.grad = torch.full_like(c, 0.3) if t == 2 else None  # one step where the others take three
        optimizer.step()

    def expect(steps, **settings):
        return torch.from_numpy(adamw(np.ones(2), lambda p, t: [0.3, 0.3], steps, **settings))

    torch.testing.assert_close(a.detach().double(), expect(3, lr=0.1), rtol=1e-6, atol=0)
    torch.testing.assert_close(b.detach(), expect(3, lr=0.1), rtol=1e-12, atol=0)
    torch.testing.assert_close(c.detach().double(), expect(1, lr=0.1), rtol=1e-6, atol=0)
    torch.testing.assert_close(d.detach().double(), expect(3, lr=0.5, weight_decay=0.1), rtol=1e-6, atol=0)
    assert optimizer.state[c]["step"] == 1 and optimizer.state[a]["step"] == 3


def test_a_saved_state_dict_continues_bit_by_bit():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x, y = torch.randn(8, 4), torch.randn(8, 3)

    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            optimizer.step()

    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 5)
    twin, file = copy.deepcopy(model), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    resumed = AdamW(twin.parameters(), lr=77.0)
    resumed.load_state_dict(saved)
    train(model, optimizer, 5)
    train(twin, resumed, 5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"lr": float("nan")}, {"eps": -1e-6}, {"weight_decay": -0.1},
                                      {"betas": (1.0, 0.999)}, {"betas": (0.9, -0.1)}])
def test_bad_hyper_parameters_are_refused(settings):
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="Invalid"):
        AdamW([p], **settings)
    with pytest.raises(ValueError, match="Invalid"):
        AdamW([{"params": [p], **settings}])


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        AdamW(embedding.parameters()).step()
