"""Cosine, cosine embedding and Pearson losses: by hand in float64, against torch and scipy, at their bounds.

Training with them, padding and bf16 are in test_losses_training.py.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from extensions import TASK_LOSSES
from extensions.forward import ForwardPass
from extensions.specs import from_spec
from multitask_classifier import CosineHead
from tasks import COURSE_TASKS, TASKS

U = [[1.0, 2.0, 0.5], [-1.0, 0.3, 2.0], [0.1, 0.1, -3.0], [2.0, 0.0, 0.0]]
V = [[1.0, 1.5, 0.0], [1.0, 0.2, -1.0], [0.2, 0.0, -1.0], [0.0, 5.0, 0.1]]
SIMILARITIES = torch.tensor([5.0, 1.2, 2.5, 0.0], dtype=torch.float64)
PARAPHRASES = torch.tensor([1, 0, 1, 0])


class Pairs:
    """A model whose encodings are given, with the cosine head that a task of `MultitaskBERT` has."""

    def __init__(self, scale, bias):
        self.u, self.v = (torch.tensor(rows, requires_grad=True) for rows in (U, V))
        self.head = CosineHead(scale, bias)

    def encode(self, task, batch):
        return [self.u, self.v]

    def score(self, task, encodings):
        return self.head(*encodings).squeeze(-1)


def value(spec, task, labels):
    """Return (loss, model after the backward pass, logits) of the loss that `spec` names."""
    model = Pairs(*{"sts": (5.0, 0.0), "para": (10.0, -5.0)}[task])
    forward = ForwardPass(model, task, {"labels": labels})
    loss = from_spec(spec, TASK_LOSSES)(forward)
    assert loss.dtype == torch.float32 and loss.shape == ()
    loss.backward()
    return loss.item(), model, forward.logits


def angles():
    """Return the cosines of the pairs by hand."""
    return [sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
            for u, v in zip(U, V, strict=True)]


@pytest.mark.parametrize("task, labels, targets", [
    ("sts", SIMILARITIES, [1.0, 0.24, 0.5, 0.0]), ("para", PARAPHRASES, [1.0, 0.0, 1.0, 0.0])])
def test_cosine_by_hand(task, labels, targets):
    by_hand = sum((cos - target) ** 2 for cos, target in zip(angles(), targets, strict=True)) / 4
    loss, model, logits = value("cosine", task, labels)
    assert loss == pytest.approx(by_hand, rel=1e-5)
    assert value("cosine:weight=3", task, labels)[0] == pytest.approx(3 * by_hand, rel=1e-5)
    # It trains the encodings alone, so that the logits stay on the labels' scale.
    assert model.u.grad.abs().max() > 0 and model.v.grad.abs().max() > 0
    assert [p.grad for p in model.head.parameters()] == [None, None]
    if task == "sts":
        assert logits.tolist() == pytest.approx([5 * cos for cos in angles()], rel=1e-5)
        assert value("mse", task, labels)[0] == pytest.approx(25 * loss, rel=1e-5)
    else:
        assert (logits > 0).tolist() == [cos > 0.5 for cos in angles()] == [True, False, True, False]


@pytest.mark.parametrize("margin", [0.0, 0.8, 0.3])
def test_cosine_embedding_is_torchs(margin):
    for task, labels, target in (("sts", SIMILARITIES, [1, -1, 1, -1]), ("para", PARAPHRASES, [1, -1, 1, -1])):
        loss, model, _ = value(f"cosine-embedding:margin={margin}", task, labels)
        u, v = (torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in (U, V))
        oracle = F.cosine_embedding_loss(u, v, torch.tensor(target), margin=margin)
        oracle.backward()
        assert loss == pytest.approx(oracle.item(), rel=1e-5)
        torch.testing.assert_close(model.u.grad.double(), u.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(model.v.grad.double(), v.grad, rtol=1e-4, atol=1e-6)


def test_cosine_embeddings_threshold_margin_and_weight_by_hand():
    a, b, c, d = angles()
    by_hand = {2.5: [1 - a, max(0, b), 1 - c, max(0, d)], 3.0: [1 - a, max(0, b), c, max(0, d)],
               0.0: [1 - a, 1 - b, 1 - c, 1 - d]}
    for threshold, rows in by_hand.items():
        spec = f"cosine-embedding:weight=0.5,threshold={threshold}"
        assert value(spec, "sts", SIMILARITIES)[0] == pytest.approx(sum(rows) / 8, rel=1e-5)
    assert value("cosine-embedding:threshold=0.0", "para", PARAPHRASES)[0] == pytest.approx(
        sum(by_hand[2.5]) / 4, rel=1e-5)  # a paraphrase has no similarity to set a threshold in


class Given:
    """A model whose logits are given."""

    def __init__(self, logits):
        self.answer = torch.as_tensor(logits, dtype=torch.float32).requires_grad_()

    def encode(self, task, batch):
        return []

    def score(self, task, encodings):
        return self.answer


def pearson_value(logits, labels, spec="pearson"):
    """Return (loss, gradient of the logits)."""
    forward = ForwardPass(Given(logits), "sts", {"labels": torch.tensor(labels, dtype=torch.float64)})
    model, loss = forward.model, from_spec(spec, TASK_LOSSES)(forward)
    assert loss.dtype == torch.float32 and loss.shape == () and forward.logits.equal(model.answer)
    loss.backward()
    return loss.item(), model.answer.grad


@pytest.mark.parametrize("seed", range(4))
def test_pearson_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=9) + 2, rng.uniform(0, 5, size=9)
    r = scipy.stats.pearsonr(np.float32(x), y).statistic
    loss, gradient = pearson_value(x, y)
    assert loss == pytest.approx(1 - r, abs=1e-5) and loss == pytest.approx(1 - np.corrcoef(x, y)[0, 1], abs=1e-5)
    assert pearson_value(x, y, "pearson:weight=2.5")[0] == pytest.approx(2.5 * (1 - r), abs=1e-5)
    assert pearson_value(-7 * x + 3, y)[0] == pytest.approx(1 + r, abs=1e-5)
    # dr/dx by hand; neither a shift nor a scale of the scores would change r
    x, y = x - x.mean(), y - y.mean()
    by_hand = -(y / np.sqrt((y @ y) * (x @ x)) - r * x / (x @ x))
    assert gradient.tolist() == pytest.approx(by_hand.tolist(), abs=1e-5)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-6)
    assert gradient.double().numpy() @ x == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("logits, labels", [
    ([1.0, 2.0, 4.0], [2.2, 2.2, 2.2]), ([1.0], [3.0]), ([0.0, 0.0], [1.0, 1.0]), ([1e4, -1e4, 0.3], [0.0] * 3)])
def test_labels_without_spread_give_nothing(logits, labels):
    loss, gradient = pearson_value(logits, labels)
    assert loss == 0 and gradient.tolist() == [0.0] * len(logits)


def test_equal_scores_have_a_finite_way_out():
    loss, gradient = pearson_value([2.5, 2.5, 2.5], [0.0, 1.0, 5.0])
    assert loss == 1 and gradient.isfinite().all()
    assert gradient[0] > 0 > gradient[2] and gradient.abs().max() < 1000  # down with the first, up with the last
    assert pearson_value([1.0, 2.0, 6.0], [0.0, 1.0, 5.0])[0] == pytest.approx(0, abs=1e-6)
    assert pearson_value([1.0, 2.0, 6.0], [5.0, 4.0, 0.0])[0] == pytest.approx(2, abs=1e-6)


def test_traits():
    bi = {"pair_encoding": "bi"}
    assert TASK_LOSSES["cosine"].needs == {**bi, "pair_score": "cosine"} and TASK_LOSSES["cosine-embedding"].needs == bi
    tasks = {name: [task for task in COURSE_TASKS if TASK_LOSSES[name].fits(TASKS[task])]
             for name in ("cosine", "cosine-embedding", "pearson")}
    assert tasks == {"cosine": ["para", "sts"], "cosine-embedding": ["para", "sts"], "pearson": ["sts"]}
    assert not TASK_LOSSES["pearson"].needs
