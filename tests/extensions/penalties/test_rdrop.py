"""R-Drop's loss: the divergence by hand and by torch, the paper's formula from two recorded passes."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine.step import TrainingStep
from extensions import PENALTIES, TASK_LOSSES
from extensions.penalties._divergence import divergence, symmetric_kl
from extensions.specs import from_spec

P, Q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]), torch.tensor([[0.25, 0.5, 0.25], [0.6, 0.3, 0.1]])


def test_symmetric_kl_by_hand():
    """(1/2, 1/4, 1/4) and (1/4, 1/2, 1/4): each KL is ln(2) / 4. A constant added to the logits changes nothing."""
    assert symmetric_kl(P[:1].log() + 7, Q[:1].log() - 3).item() == pytest.approx(math.log(2) / 4)


def test_symmetric_kl_is_torchs():
    generator = torch.Generator().manual_seed(0)
    a, b = (3 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = a.softmax(-1), b.softmax(-1)
    both = F.kl_div(q.log(), p, reduction="batchmean") + F.kl_div(p.log(), q, reduction="batchmean")
    torch.testing.assert_close(divergence("sst", a, b), both / 2)
    assert divergence("sst", a, b).equal(divergence("sst", b, a)) and divergence("sst", a, a) == 0 < both
    assert divergence("sst", 1e4 * a, -1e4 * a).isfinite()


def test_one_logit_is_a_coin():
    a, b = torch.tensor([0.3, -2.0, 40.0]).double(), torch.tensor([1.5, 2.0, 39.0]).double()
    p, q = torch.distributions.Bernoulli(logits=a), torch.distributions.Bernoulli(logits=b)
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(divergence("para", a, b), both.mean() / 2)
    x, y = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(-1.5))
    by_hand = (x - y) * (math.log(x / y) - math.log((1 - x) / (1 - y))) / 2
    assert divergence("para", a[:1], b[:1]).item() == pytest.approx(by_hand)


def test_similarities_differ_by_their_square():
    assert divergence("sts", torch.tensor([1.0, 4.0]), torch.tensor([3.0, 3.5])).item() == (4 + 0.25) / 2


class Passes:
    """A model whose passes give these logits in turn; it writes down how often it was asked."""

    def __init__(self, *passes):
        self.passes, self.taken = [torch.tensor(logits, requires_grad=True) for logits in passes], 0

    def encode(self, task, batch):
        return []

    def score(self, task, encodings):
        self.taken += 1
        return self.passes[self.taken - 1]


def task_loss(model, batch, penalties):
    """Return the cross-entropy with penalties that a training step has."""
    step = TrainingStep(model, {"sst": TASK_LOSSES["ce"]}, torch.optim.SGD(model.passes), penalties=penalties,
                        device=torch.device("cpu"))
    return step.task_loss("sst", batch)


@pytest.mark.parametrize("weight", [0.0, 0.5, 4.0])
def test_the_papers_formula_by_hand(weight):
    """-log p(y) - log q(y) + weight (KL(p, q) + KL(q, p)) / 2, mean over rows, in the words of Liang et al. 2021."""
    labels = [0, 2]
    batch = {"labels": torch.tensor(labels)}
    penalties = [from_spec(f"rdrop:weight={weight}", PENALTIES)]

    def loss_of(*passes):
        model = Passes(*(logits.tolist() for logits in passes))
        return model, task_loss(model, batch, penalties)

    model, loss = loss_of(P.log(), Q.log())
    rows = [(p.tolist(), q.tolist()) for p, q in zip(P, Q, strict=True)]
    by_hand = sum(
        -math.log(p[y]) - math.log(q[y])
        + weight / 2 * sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q, strict=True))
        for (p, q), y in zip(rows, labels, strict=True)) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-5) and model.taken == 2
    assert sorted(batch) == ["labels"]  # the caller's batch is left as it was

    loss.backward()
    nudge = torch.zeros(2, 3)
    nudge[0, 1] = 1e-2  # of one logit, in either pass: the gradient as a quotient of differences
    for i, there, back in ((0, (P.log() + nudge, Q.log()), (P.log() - nudge, Q.log())),
                           (1, (P.log(), Q.log() + nudge), (P.log(), Q.log() - nudge))):
        difference = (loss_of(*there)[1] - loss_of(*back)[1]).item()
        assert model.passes[i].grad[0, 1].item() == pytest.approx(difference / 2e-2, abs=1e-3)


def test_penalties_add_up_and_none_is_the_plain_loss():
    batch = {"labels": torch.tensor([0, 2])}
    plain = task_loss(Passes(P.log().tolist()), batch, [])
    assert plain.equal(F.cross_entropy(P.log(), batch["labels"]))
    seen = []
    extra = [lambda forward, k=k: seen.append(forward.logits) or k * forward.logits.sum() for k in (2, 3)]
    assert task_loss(Passes(P.log().tolist()), batch, extra).item() == pytest.approx(
        plain.item() + 5 * P.log().sum().item())
    assert seen[0] is seen[1] and seen[0].equal(P.log())
