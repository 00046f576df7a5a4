"""Multiple negatives ranking and SimCSE: written out once more as loops over float64 numbers, row by row.

Training with them, padding and bf16 are in test_losses_training.py.
"""

import math

import pytest
import torch

from extensions import TASK_LOSSES
from extensions.losses._contrastive import same_text
from extensions.specs import from_spec
from tasks import COURSE_TASKS, TASKS
from tests.helpers.fixtures_tiny import forward_of

B, C = 6, 4
PAIRS = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12)]  # the texts of each row, by number
PARAPHRASES = [1, 0, 1, 1, 0, 1]
SIMILARITIES = [5.0, 1.0, 4.0, 3.9, 4.6, 0.0]
# Row 0 and 3 share the first text, 0 and 5 the second, of row 4 the second is row 2's first; row 1 has row 2's first.
SHARED = [(1, 2), (5, 4), (5, 6), (1, 8), (9, 5), (11, 2)]


class Encodings:
    """A model whose passes give these encodings in turn, a tuple of (B, C) for each pass."""

    def __init__(self, *passes):
        self.passes = [[side.float().requires_grad_() for side in sides] for sides in passes]
        self.taken = 0

    def encode(self, task, batch):
        self.taken += 1
        return self.passes[self.taken - 1]


def random(seed, rows=B):
    return torch.randn(rows, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(texts):
    """Return token ids of numbered texts, [CLS] number [SEP]; odd ones have a further token, the others padding."""
    return torch.tensor([[101, 500 + i, *((7, 102) if i % 2 else (102, 0))] for i in texts])


def pairs(task="para", labels=PARAPHRASES, texts=PAIRS):
    first, second = zip(*texts, strict=True)
    return {"task": task, "labels": torch.tensor(labels), "token_ids_1": ids(first),
            "token_ids_2": torch.nn.functional.pad(ids(second), (0, 2))}


def value(spec, batch, *passes):
    """Return (loss, model after the backward pass) of the loss that `spec` names."""
    model = Encodings(*passes)
    loss = from_spec(spec, TASK_LOSSES)(forward_of(model, batch))
    assert loss.dtype == torch.float32 and loss.shape == () and model.taken == len(passes)
    loss.backward()
    assert all(side.grad.isfinite().all() for sides in model.passes for side in sides)
    return loss.item(), model


def cos(a, b):
    a, b = a.tolist(), b.tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def by_loops(anchors, candidates, scale):
    """Mean over anchors (encoding, own candidate, set of candidates) of -log exp(s_own) / Σ exp(s)."""
    rows = [-math.log(math.exp(scale * cos(h, candidates[own]))
                      / sum(math.exp(scale * cos(h, candidates[j])) for j in others)) for h, own, others in anchors]
    return sum(rows) / max(1, len(rows))


def mnrl_by_loops(u, v, texts, alike, scale=20.0):
    """Candidates of i: its own, and all that share no text with the pair i and are not its first text."""
    anchors = [(u[i], i, [j for j in range(len(u)) if j == i or not (
        texts[i][0] == texts[j][0] or texts[i][1] == texts[j][1] or texts[i][0] == texts[j][1])])
        for i in range(len(u)) if alike[i]]
    return by_loops(anchors, v, scale)


@pytest.mark.parametrize("texts", [PAIRS, SHARED])
@pytest.mark.parametrize("task, labels, alike", [
    ("para", PARAPHRASES, PARAPHRASES), ("sts", SIMILARITIES, [1, 0, 1, 0, 1, 0])])
def test_mnrl_by_loops(task, labels, alike, texts):
    u, v, batch = random(0), random(1), pairs(task, labels, texts)
    turned = [pair[::-1] for pair in texts]
    forth = mnrl_by_loops(u, v, texts, alike)
    assert value("mnrl", batch, (u, v))[0] == pytest.approx(forth, rel=1e-5)
    assert value("mnrl:weight=0.1", batch, (u, v))[0] == pytest.approx(forth / 10, rel=1e-5)
    # A scale of 1 lets every candidate count.
    forth, back = mnrl_by_loops(u, v, texts, alike, scale=1.0), mnrl_by_loops(v, u, turned, alike, scale=1.0)
    assert value("mnrl:scale=1", batch, (u, v))[0] == pytest.approx(forth, rel=1e-5)
    assert value("mnrl:scale=1,symmetric=true", batch, (u, v))[0] == pytest.approx((forth + back) / 2, rel=1e-5)


def test_mnrl_with_all_alike_is_a_softmax_over_the_batch():
    """Sentence-BERT's formula, in float64: cross-entropy of scaled cosines with the row's number as the class."""
    u, v = random(0), random(1)
    scores = 20 * (u / u.norm(dim=1, keepdim=True)) @ (v / v.norm(dim=1, keepdim=True)).T
    forth, back = (-s.softmax(1).diagonal().log().mean().item() for s in (scores, scores.T))
    batch = pairs(labels=[1] * B)
    assert value("mnrl", batch, (u, v))[0] == pytest.approx(forth, rel=1e-5)
    assert value("mnrl:symmetric=true", batch, (u, v))[0] == pytest.approx((forth + back) / 2, rel=1e-5)
    assert value("mnrl:threshold=4.5", pairs("sts", [4.5] * B), (u, v))[0] == pytest.approx(forth, rel=1e-5)


def test_mnrl_gradients_leave_out_what_is_masked():
    u, v = random(0), random(1)
    _, model = value("mnrl", pairs(labels=[1, 0, 0, 0, 0, 0], texts=SHARED), (u, v))
    [(gu, gv)] = [[side.grad.abs().sum(1) > 0 for side in sides] for sides in model.passes]
    assert gu.tolist() == [True] + [False] * 5  # the one anchor
    assert gv.tolist() == [True, True, True, False, True, False]  # rows 3 and 5 share a text with row 0


def simcse_by_loops(u, v, texts, alike, temperature, hard_negatives):
    """Candidates of i: v of alike pairs; of the others u and v. None that says the same as u_i or v_i."""
    anchors, both = [], [*v, *u]
    for i in (i for i in range(B) if alike[i]):
        others = [i]
        for j in range(B):
            hard = hard_negatives and not alike[j]
            if j != i and (alike[j] or hard) and texts[j][1] not in texts[i] and not (
                    alike[j] and texts[j][0] == texts[i][0]):
                others.append(j)
            if hard and texts[j][0] not in texts[i]:
                others.append(B + j)
        anchors.append((u[i], i, others))
    return by_loops(anchors, both, 1 / temperature)


@pytest.mark.parametrize("hard", ["true", "false"])
@pytest.mark.parametrize("texts", [PAIRS, SHARED])
@pytest.mark.parametrize("task, labels, alike", [
    ("para", PARAPHRASES, PARAPHRASES), ("sts", SIMILARITIES, [1, 0, 1, 0, 1, 0])])
def test_supervised_simcse_by_loops(task, labels, alike, texts, hard):
    u, v, batch = random(0), random(1), pairs(task, labels, texts)
    spec, turned = f"simcse-supervised:hard_negatives={hard}", [pair[::-1] for pair in texts]
    forth = simcse_by_loops(u, v, texts, alike, 0.05, hard == "true")
    assert value(spec, batch, (u, v))[0] == pytest.approx(forth, rel=1e-5)
    assert abs(value("mnrl", batch, (u, v))[0] - forth) > 1e-3
    # A temperature of 1 lets every candidate count.
    forth, back = (simcse_by_loops(*way, alike, 1.0, hard == "true") for way in ((u, v, texts), (v, u, turned)))
    assert value(f"{spec},temperature=1", batch, (u, v))[0] == pytest.approx(forth, rel=1e-5)
    assert value(f"{spec},temperature=1,symmetric=true,weight=2", batch, (u, v))[0] == pytest.approx(
        forth + back, rel=1e-5)


@pytest.mark.parametrize("sides", [1, 2])
def test_unsupervised_simcse_by_loops(sides):
    texts = [i for pair in SHARED for i in pair][:B] if sides == 1 else [i for side in zip(*SHARED, strict=True)
                                                                         for i in side]
    batch = {"task": "sst", "labels": torch.zeros(B), "token_ids": ids(texts)} if sides == 1 else pairs(texts=SHARED)
    h, other = random(0, sides * B), random(1, sides * B)
    anchors = [(h[i], i, [j for j in range(sides * B) if j == i or not (texts[i] == texts[j] or i % B == j % B)])
               for i in range(sides * B)]
    passes = h.split(B), other.split(B)
    assert value("simcse", batch, *passes)[0] == pytest.approx(by_loops(anchors, other, 20.0), rel=1e-5)
    spec = "simcse:temperature=0.2,weight=0.5"
    assert value(spec, batch, *passes)[0] == pytest.approx(by_loops(anchors, other, 5.0) / 2, rel=1e-5)


def test_unsupervised_simcse_without_dropout_only_pushes_apart():
    """Two equal views: cos(h_i, h_i) = 1, and the loss is log Σ_j exp((cos(h_i, h_j) - 1) / temperature)."""
    h, texts = random(0), [1, 2, 3, 4, 5, 6]
    by_hand = sum(math.log(sum(math.exp(20 * (cos(h[i], h[j]) - 1)) for j in range(B))) for i in range(B)) / B
    batch = {"task": "sst", "labels": torch.zeros(B), "token_ids": ids(texts)}
    assert value("simcse", batch, (h,), (h,))[0] == pytest.approx(by_hand, rel=1e-4)
    apart = torch.eye(B, dtype=torch.float64)
    assert value("simcse", batch, (apart,), (apart,))[0] == pytest.approx(math.log(1 + 5 * math.exp(-20)), abs=1e-6)


@pytest.mark.parametrize("spec", ["mnrl", "mnrl:symmetric=true", "simcse-supervised",
                                  "simcse-supervised:symmetric=true,hard_negatives=false"])
def test_a_batch_without_alike_pairs_gives_nothing(spec):
    for batch in (pairs(labels=[0] * B), pairs("sts", [3.9] * B)):
        loss, model = value(spec, batch, (random(0), random(1)))
        assert loss == 0 and all(not side.grad.any() for side in model.passes[0])
    alone = {name: rows[:1] if torch.is_tensor(rows) else rows for name, rows in pairs().items()}
    assert value(spec, alone, (random(0)[:1], random(1)[:1]))[0] == 0
    same = pairs(labels=[1] * B, texts=[(1, 1)] * B)  # all texts are one: nobody can be told from the right answer
    assert value(spec, same, (random(0), random(1)))[0] == 0


def test_same_text_heeds_tokens_not_padding():
    a, b = torch.tensor([[1, 2, 0, 0], [1, 2, 3, 0]]), torch.tensor([[1, 2], [2, 1], [1, 0]])
    assert same_text(a, b).tolist() == [[True, False, False], [False] * 3]
    assert same_text(b, a).equal(same_text(a, b).T) and same_text(a, a).equal(torch.eye(2).bool())


def test_traits():
    for name in ("mnrl", "simcse", "simcse-supervised"):
        assert TASK_LOSSES[name].needs == {"pair_encoding": "bi"}
    tasks = {name: [task for task in COURSE_TASKS if TASK_LOSSES[name].fits(TASKS[task])]
             for name in ("mnrl", "simcse-supervised", "simcse")}
    assert tasks == {"mnrl": ["para", "sts"], "simcse-supervised": ["para", "sts"], "simcse": ["sst", "para", "sts"]}
