"""PCGrad, GradVac and CAGrad against the papers' algorithms on vectors in float64.

In place of a model's five tests: a combination promises no identity at the start, but is the plain sum where nothing
conflicts; it has no parameters; padding does not concern it. A loss that falls is in test_task_gradients.py.
"""

import io
import itertools

import numpy as np
import pytest
import torch

from engine import distributed
from extensions import GRADIENTS
from extensions.gradients.cagrad import CAGrad
from extensions.gradients.gradvac import GradVac
from extensions.gradients.pcgrad import PCGrad
from extensions.specs import from_spec

TASKS = ("sst", "para", "sts", "cola")
CONFLICT = torch.tensor([[1.0, 0.2, -0.3], [-1.0, 1.0, -0.2], [-1.0, -0.5, 0.4]]).double()  # every order matters


def random_gradients(K, case):
    """Return K gradients (K, 5) of unequal lengths, some nearly alike, some nearly opposed; float64."""
    rng = np.random.default_rng((K, case))
    G = rng.normal(size=(K, 5)) * 10 ** rng.uniform(-1, 1, (K, 1)) + (case % 3 == 0) * rng.normal(size=5)
    if case % 5 == 0:
        G[1] = -0.7 * G[0] + 0.1 * G[1]
    return torch.from_numpy(G)


def combine(technique, params):
    """Combine what `technique` has collected, as a training step does: after the sum over processes."""
    for tensors in technique.messages(params):
        distributed.add_up(tensors)
    technique.combine(params)


def combined(technique, *parts, dtype=torch.float64):
    """Return the gradient that the technique makes of the sum of the parts, each a (K, N) of gradients."""
    p = torch.zeros(parts[0].shape[1], dtype=dtype, requires_grad=True)
    for part in parts:
        technique.backward({task: p @ g.to(dtype) for task, g in zip(TASKS, part)}, [p])
    combine(technique, [p])
    return p.grad


def pcgrad_on_vectors(G, order):
    """Return the sum of the projected gradients, each meeting the others in `order`, in the words of the paper."""
    total = torch.zeros_like(G[0])
    for i in range(len(G)):
        g = G[i].clone()
        for j in order:
            if j != i and g @ G[j] < 0:
                g = g - (g @ G[j]) / (G[j] @ G[j]) * G[j]
        total += g
    return total


def test_pcgrad_by_hand():
    """(1, 0) + (-1, 1) / 2 = (.5, .5) and (-1, 1) + (1, 0) = (0, 1); dividing by ||g_i||^2 the first were (0, 1)."""
    G = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    technique = PCGrad()
    assert combined(technique, G, dtype=torch.float32).tolist() == [0.5, 1.5]
    assert technique.cosines.keys() == {("sst", "para")}
    assert technique.cosines["sst", "para"].item() == pytest.approx(-(0.5**0.5))
    assert combined(PCGrad(), G.abs(), dtype=torch.float32).tolist() == [2, 1]  # no conflict: the sum


@pytest.mark.parametrize("K", [2, 3, 4])
def test_pcgrad_is_the_papers_in_all_orders(K):
    changed = 0
    for case in range(6):
        G = random_gradients(K, case)
        for order in itertools.permutations(range(K)):
            weights = PCGrad().weights(G @ G.T, torch.tensor(order).repeat(K, 1))
            torch.testing.assert_close(weights @ G, pcgrad_on_vectors(G, order), rtol=1e-9, atol=1e-11)
            changed += not torch.allclose(weights, torch.ones(K, dtype=torch.float64))
    assert changed


def test_orders_are_drawn_at_random():
    """Every task has an order of its own: of three, 8 sets of orders matter, and each is drawn."""
    G = CONFLICT
    each = [torch.tensor(order) for order in itertools.permutations(range(3))]
    possible = {tuple(PCGrad().weights(G @ G.T, torch.stack(orders)).tolist())
                for orders in itertools.product(each, repeat=3)}
    torch.manual_seed(0)
    found = [combined(PCGrad(), G) for _ in range(100)]
    drawn = {tuple(round(x, 9) for x in gradient.tolist()) for gradient in found}
    sums = [(torch.tensor(weights, dtype=G.dtype) @ G).tolist() for weights in possible]
    assert drawn == {tuple(round(x, 9) for x in gradient) for gradient in sums}
    assert len(drawn) == 8
    torch.manual_seed(0)
    assert all(gradient.equal(combined(PCGrad(), G)) for gradient in found)


@pytest.mark.parametrize("kind", [PCGrad, GradVac, CAGrad])
def test_a_gradient_of_zero(kind):
    """A batch without positives gives its task none: nothing is to be projected on it, and no angle is known."""
    technique, friends = kind(), torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    for _ in range(3):
        combined(technique, friends)
    before = technique.state_dict().get("targets", {})
    found = combined(technique, friends * torch.tensor([[1.0], [0.0], [1.0]]))
    assert found.isfinite().all()
    if kind is not CAGrad:  # which gives way to the task that gains least
        assert found.tolist() == pytest.approx([3.0, 3.0, 0.0])
    after = technique.state_dict().get("targets", {})
    assert all(after[pair].equal(target) for pair, target in before.items() if "para" in pair)


def gradvac_on_vectors(G, order, targets, beta):
    """Return the sum of the g_i' and move `targets`, in the words of the paper."""
    total = torch.zeros_like(G[0])
    for i in range(len(G)):
        g = G[i].clone()
        for j in (j for j in order if j != i):
            phi, t = (g @ G[j] / (g.norm() * G[j].norm())).item(), targets[i, j]
            if phi < t:
                g = g + g.norm() * (t * (1 - phi**2) ** 0.5 - phi * (1 - t**2) ** 0.5) / (
                    G[j].norm() * (1 - t**2) ** 0.5) * G[j]
                assert (g @ G[j] / (g.norm() * G[j].norm())).item() == pytest.approx(t, abs=1e-9)
            targets[i, j] = (1 - beta) * t + beta * phi
        total += g
    return total


@pytest.mark.parametrize("K", [2, 3, 4])
def test_gradvac_is_the_papers_step_after_step(K):
    technique, targets, more = GradVac(beta=0.3), np.zeros((K, K)), 0
    technique.tasks = TASKS[:K]
    for case in range(12):
        G, order = random_gradients(K, case + 1), np.random.default_rng(case).permutation(K)
        if case > 5:
            G = G.abs() + 1  # friends, so that targets are above 0
        weights = technique.weights(G @ G.T, torch.tensor(order).repeat(K, 1))
        torch.testing.assert_close(weights @ G, gradvac_on_vectors(G, order, targets, 0.3), rtol=1e-8, atol=1e-9)
        more += bool((weights > 1).any())
        if case == 0:
            torch.testing.assert_close(weights @ G, pcgrad_on_vectors(G, order))
        if case == 7:  # a resumed run
            torch.save(technique.state_dict(), buffer := io.BytesIO())
            buffer.seek(0)
            technique = GradVac(beta=0.3)
            technique.load_state_dict(torch.load(buffer, weights_only=True))
            technique.tasks = TASKS[:K]
    assert more
    for i, j in itertools.permutations(range(K), 2):
        assert technique.targets[TASKS[i], TASKS[j]].item() == pytest.approx(targets[i, j])


@pytest.mark.parametrize("K", [2, 3, 4])
def test_cagrad_is_scipys_minimum(K):
    minimize = pytest.importorskip("scipy.optimize").minimize
    for case in range(12):
        G, c = random_gradients(K, case).numpy(), (0.2, 0.5, 0.9)[case % 3]
        g0, scale = G.mean(0), (G**2).sum(1).mean()

        def F(w):
            return (w @ G @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(w @ G)) / scale

        found = min((minimize(F, start, method="SLSQP", bounds=[(0, 1)] * K, tol=1e-15,
                              constraints={"type": "eq", "fun": lambda w: w.sum() - 1})
                     for start in (np.full(K, 1 / K), *(0.8 * np.eye(K) + 0.2 / K))), key=lambda one: one.fun)
        d = combined(CAGrad(c), torch.from_numpy(G)).numpy() / K
        assert np.linalg.norm(d - g0) <= c * np.linalg.norm(g0) * (1 + 1e-9)
        # By duality the worst task's improvement is the minimum of F.
        assert (G @ d).min() / scale == pytest.approx(found.fun, abs=1e-5 if K < 4 else 1e-4)
        gw = found.x @ G
        expected = g0 + c * np.linalg.norm(g0) / np.linalg.norm(gw) * gw
        assert np.linalg.norm(d - expected) < (1e-3 if K < 4 else 1e-2) * np.linalg.norm(expected)
    assert np.allclose(combined(CAGrad(0.0), torch.from_numpy(G)), G.sum(0))


@pytest.mark.parametrize("c", [-0.1, 1.0])
def test_cagrad_refuses(c):
    with pytest.raises(ValueError, match="c must be a finite number of at least 0|c must be at least 0 and below 1"):
        from_spec(f"cagrad:c={c}", GRADIENTS)
