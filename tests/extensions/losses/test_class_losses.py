"""Losses of classes: label smoothing, ordinal output, one versus rest, focal; by hand in float64 and at their bounds.

Training with them, padding and bf16 are in test_losses_training.py.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from extensions import TASK_LOSSES
from extensions.forward import ForwardPass
from extensions.losses.one_versus_rest import PriorOutput
from extensions.losses.ordinal import OrdinalOutput
from extensions.specs import from_spec
from tasks import COURSE_TASKS, TASKS
from tests.helpers.regularizer_cases import a_batch, forward_of, tiny_model

CLASSES = [[1.5, 2.0, -1.0, 0.0, 0.3], [0.0, -1.0, 4.0, 1.0, 1.0], [9.0, 0.0, 0.0, 0.0, 0.0]]
CLASS_LABELS = [1, 0, 4]
EASY = [[2.0, 0.0, 0.0], [0.0, 3.0, 1.0]], [0, 1]
BINARY, BINARY_LABELS = [0.5, -2.0, 3.0], [1, 0, 0]


class Given:
    """A model whose logits are given."""

    def __init__(self, logits):
        self.answer = torch.tensor(logits, requires_grad=True)

    def encode(self, task, batch):
        return []

    def score(self, task, encodings):
        return self.answer


def value(spec, logits=CLASSES, labels=CLASS_LABELS):
    """Return (loss, gradient of the logits) of the loss that `spec` names."""
    forward = ForwardPass(Given(logits), "sst", {"labels": torch.tensor(labels)})
    model, loss = forward.model, from_spec(spec, TASK_LOSSES)(forward)
    assert loss.dtype == torch.float32 and loss.shape == () and forward.logits.equal(model.answer)
    loss.backward()
    return loss.item(), model.answer.grad


def probabilities(logits):
    return torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_by_hand(smoothing):
    rows = zip(probabilities(CLASSES), CLASS_LABELS, strict=True)
    by_hand = -sum((1 - smoothing) * math.log(p[y]) + smoothing / 5 * sum(map(math.log, p)) for p, y in rows) / 3
    assert value(f"ce:smoothing={smoothing}")[0] == pytest.approx(by_hand, rel=1e-5)


def test_one_versus_rest_by_hand():
    by_hand = 0.0
    for row, y in zip(CLASSES, CLASS_LABELS, strict=True):
        for k, z in enumerate(row):
            p = 1 / (1 + math.exp(-z))
            by_hand -= (math.log(p) if k == y else math.log(1 - p)) / 15
    loss, gradient = value("one-versus-rest")
    assert loss == pytest.approx(by_hand, rel=1e-5) and abs(loss - value("ce")[0]) > 0.1
    own = F.one_hot(torch.tensor(CLASS_LABELS), 5).bool()
    assert (gradient[own] < 0).all() and (gradient[~own] > 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_by_hand(gamma):
    by_hand = -sum((1 - p[y]) ** gamma * math.log(p[y])
                   for p, y in zip(probabilities(CLASSES), CLASS_LABELS, strict=True)) / 3
    assert value(f"focal:gamma={gamma}")[0] == pytest.approx(by_hand, rel=1e-5)
    by_hand = 0.0
    for z, y in zip(BINARY, BINARY_LABELS, strict=True):
        p = 1 / (1 + math.exp(-z if y else z))
        by_hand -= (1 - p) ** gamma * math.log(p) / 3
    assert value(f"focal:gamma={gamma}", BINARY, BINARY_LABELS)[0] == pytest.approx(by_hand, rel=1e-5)


def test_focal_without_gamma_is_cross_entropy():
    for focal, plain in ((value("focal:gamma=0"), value("ce")),
                         (value("focal:gamma=0", BINARY, BINARY_LABELS), value("bce", BINARY, BINARY_LABELS))):
        assert focal[0] == pytest.approx(plain[0], rel=1e-6)
        torch.testing.assert_close(focal[1], plain[1])
    assert value("focal", *EASY)[0] < 0.2 * value("ce", *EASY)[0]  # and the default is not


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_of_certain_rows_has_no_nan(gamma):
    """1 - p is 0 in fp32: a power of it would have an infinite slope."""
    loss, gradient = value(f"focal:gamma={gamma}", [[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], [0, 2])
    assert loss == pytest.approx(100.0) and gradient[0].abs().max() < 1e-6 and gradient[1, 2] == pytest.approx(-0.5)


def test_ordinal_output_starts_uniform_and_trains_what_it_says():
    """Identity at initialisation: a score of 0 says nothing. Its parameters: C weights, a threshold, K - 2 gaps."""
    output = OrdinalOutput(6, 5)
    torch.testing.assert_close(output(torch.zeros(2, 6)).exp(), torch.full((2, 5), 0.2))
    assert {name: p.numel() for name, p in output.named_parameters() if p.requires_grad} == {
        "score.weight": 6, "first": 1, "gaps": 3}
    assert OrdinalOutput(6, 2)(torch.zeros(1, 6)).exp().tolist() == [[0.5, 0.5]]


def random_output(seed=0):
    generator = torch.Generator().manual_seed(seed)
    output = OrdinalOutput(6, 5)
    with torch.no_grad():
        for p in output.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return output, torch.randn(8, 6, generator=generator)


def test_ordinal_output_is_the_difference_of_cumulative_sigmoids():
    output, features = random_output()
    w, first, gaps = (p.detach().double() for p in (output.score.weight[0], output.first, output.gaps))
    thresholds = [first.item()]
    for gap in gaps.tolist():
        thresholds.append(thresholds[-1] + math.log(1 + math.exp(gap)))
    assert thresholds == sorted(thresholds) == pytest.approx(output.thresholds().tolist(), rel=1e-5)
    log_p = output(features)
    for x, row in zip(features.double(), log_p.tolist(), strict=True):
        score = (w @ x).item()
        cumulative = [0.0, *(1 / (1 + math.exp(score - t)) for t in thresholds), 1.0]
        by_hand = [math.log(b - a) for a, b in zip(cumulative, cumulative[1:], strict=False)]
        assert row == pytest.approx(by_hand, rel=1e-4, abs=1e-5)
    # Proportional odds: each step of the score moves the log-odds of every P(y <= k) by as much, here w · x.
    p = log_p.detach().double().exp().cumsum(1)[:, :-1]
    scores = features.double() @ w
    torch.testing.assert_close(torch.logit(p), output.thresholds().detach().double() - scores[:, None],
                               rtol=1e-3, atol=1e-3)


def test_ordinal_output_is_finite_far_out():
    """Where the sigmoids are 0 or 1 in fp32 their difference would be 0, its logarithm -inf."""
    output, _ = random_output()
    features = output.score.weight.detach() / output.score.weight.detach().square().sum()
    for score in (-1e4, -200.0, 200.0, 1e4):
        log_p = output(score * features)
        assert log_p.isfinite().all() and log_p.argmax().item() == (4 if score > 0 else 0)
        gradients = torch.autograd.grad(log_p.sum(), list(output.parameters()))
        assert all(g.isfinite().all() for g in gradients)
    with torch.no_grad():
        output.gaps[1] = -60.0  # two thresholds meet: the class between them has almost no probability
    _, t, same, _ = output.thresholds().tolist()
    by_hand = -math.log1p(math.exp(-same)) - math.log1p(math.exp(t)) - 60
    assert output(0 * features)[0, 2].item() == pytest.approx(by_hand, rel=1e-5)


def test_the_decision_is_the_class_between_whose_thresholds_the_score_lies(bert_dir):
    output, features = random_output()
    scores = (output.score(features).squeeze(1) * 3).detach()
    output.score.weight.data *= 3
    log_p = output(features).detach()
    between = torch.searchsorted(output.thresholds().detach(), scores)
    assert output.decision(log_p).argmax(1).equal(between) and not log_p.argmax(1).equal(between)
    # By hand: of .1 .2 .25 .25 .2 half lies below the end of the third class, and .55 from its beginning on.
    p = torch.tensor([[0.1, 0.2, 0.25, 0.25, 0.2], [0.6, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.3, 0.4]])
    torch.testing.assert_close(output.decision(p.log()).exp()[0], torch.tensor([0.1, 0.3, 0.55, 0.45, 0.2]))
    assert output.decision(p.log()).argmax(1).tolist() == [2, 0, 3]
    far = torch.full((2, 5), -1e4)
    far[0, 0] = far[1, 4] = 0.0
    assert output.decision(far).argmax(1).tolist() == [0, 4] and output.decision(far).isfinite().all()

    model = tiny_model(bert_dir, outputs={"sst": "ordinal"}).eval()
    batch = a_batch("sst", bert_dir)
    with torch.no_grad():
        logits = forward_of(model, batch).logits
        assert model.predict_sentiment(batch["token_ids"], batch["attention_mask"]).equal(output.decision(logits))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(len(logits)))  # losses see probabilities


def test_classes_of_one_versus_rest_begin_at_their_prior():
    output = PriorOutput(6, 5)
    torch.testing.assert_close(output(torch.zeros(2, 6)).sigmoid(), torch.full((2, 5), 0.2))
    assert output.weight.shape == (5, 6) and TASK_LOSSES["one-versus-rest"].needs == {"output": "prior"}


def test_ordinal_loss_is_the_likelihood():
    output, features = random_output()
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    log_p = output(features).detach()
    by_hand = -sum(log_p[i, y].item() for i, y in enumerate(labels.tolist())) / 8
    assert value("ordinal", log_p.tolist(), labels.tolist())[0] == pytest.approx(by_hand, rel=1e-5)
    assert value("ce", log_p.tolist(), labels.tolist())[0] == pytest.approx(by_hand, rel=1e-5)
    # The score alone orders the rows: rows sorted by it are sorted by expected class. K linear outputs have no such.
    expected = (log_p.exp() * torch.arange(5)).sum(1)
    assert expected.argsort().equal((features @ output.score.weight.detach()[0]).argsort())


def test_traits():
    assert TASK_LOSSES["ordinal"].needs == {"output": "ordinal"}
    tasks = {name: [task for task in COURSE_TASKS if TASK_LOSSES[name].fits(TASKS[task])]
             for name in ("ce", "ordinal", "one-versus-rest", "focal", "bce", "mse")}
    assert tasks == {"ce": ["sst"], "ordinal": ["sst"], "one-versus-rest": ["sst"], "focal": ["sst", "para"],
                     "bce": ["para"], "mse": ["sts"]}
