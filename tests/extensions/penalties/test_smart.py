"""SMART's smoothness term: by hand in float64, on a tiny BERT, under bf16 and without waiting for a device.

"Identity at initialisation" is here: a ball of radius 0 costs nothing.
"""

import math

import pytest
import torch

from extensions import PENALTIES
from extensions.penalties._divergence import smoothness
from extensions.penalties._perturbation import ascend, perturbed
from extensions.penalties.smart import NORMS, project, smart
from extensions.specs import from_spec
from files.errors import UserError
from tests.helpers.fixtures_tiny import losses_of_20_steps
from tests.helpers.regularizer_cases import (
    CASES,
    a_batch,
    by_hand,
    forward_of,
    no_waiting,
    reached,
    same_noise,
    tiny_model,
    total,
    value_of,
)


def settings(**options):
    """Return smart with options of its own."""
    return lambda forward: smart(forward, **options)


@pytest.mark.parametrize("norm", NORMS)
def test_a_similarity_by_hand(norm):
    """f = w · Σ x_t: l_s = mean (w · Σ delta_t)², its gradient for any token of row i is 2 / B (w · Σ delta_t) w."""
    model, batch = by_hand("sts", 1)
    w, tokens, step, epsilon, sigma = model.W.detach()[:, 0], [3, 2], 0.3, 0.25, 0.01
    torch.manual_seed(5)
    expected, noise = 0.0, sigma * torch.randn(2, 3, 4, dtype=torch.float64)
    for row, T in enumerate(tokens):
        delta = noise[row, :T].clone()
        gradient = (delta @ w).sum() * w.expand(T, -1)
        for t in range(T):
            if norm == "inf" or norm == "inf-token":  # all tokens have the same gradient
                g = gradient[t] / gradient[t].abs().max()
                delta[t] = (delta[t] + step * g).clamp(-epsilon, epsilon)
            else:
                g = gradient[t] / gradient[t].norm() / (math.sqrt(T) if norm == "l2" else 1)
                delta[t] = delta[t] + step * g
        if norm == "l2":
            delta *= min(1, epsilon / delta.norm())
        if norm == "l2-token":
            delta *= (epsilon / delta.norm(dim=1, keepdim=True)).clamp(max=1)
        expected += (delta @ w).sum() ** 2 / 2
    torch.manual_seed(5)
    value = value_of(settings(weight=3.0, step_size=step, epsilon=epsilon, sigma=sigma, norm=norm), model, batch)
    torch.testing.assert_close(value, 3 * expected)


def test_two_steps_on_classes_by_torchs_distributions():
    model, batch = by_hand("sst", 3)
    step, epsilon, W, mask = 0.4, 0.5, model.W.detach(), batch["attention_mask"].unsqueeze(-1)
    z = forward_of(model, batch).logits.detach()
    torch.manual_seed(5)
    delta = 0.1 * torch.randn(2, 3, 4, dtype=torch.float64) * mask

    def jeffreys(delta):
        p, q = (torch.distributions.Categorical(logits=a) for a in (z, z + (delta * mask).sum(1) @ W))
        both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
        return both.mean()
    for _ in range(2):
        delta.requires_grad_()
        [g] = torch.autograd.grad(jeffreys(delta), delta)
        delta = delta.detach() + step * g / g.norm(dim=2, keepdim=True).clamp(min=1e-300)
        delta = delta * (epsilon / delta.norm(dim=2, keepdim=True).clamp(min=1e-300)).clamp(max=1)
    torch.manual_seed(5)
    value = value_of(settings(steps=2, step_size=step, epsilon=epsilon, sigma=0.1, norm="l2-token"), model, batch)
    torch.testing.assert_close(value, jeffreys(delta))


@pytest.mark.parametrize("norm, length", [("inf", 0.5), ("l2", 1.0), ("l2-token", 1.0), ("inf-token", 0.5)])
def test_projection(norm, length):
    far, near = torch.full((2, 3, 4), -2.0), torch.full((2, 3, 4), 1e-3)
    radius = {"inf": 0.5, "l2": math.sqrt(12) * 0.5, "l2-token": 1.0, "inf-token": 0.5}[norm]
    torch.testing.assert_close(project(far, norm, radius), torch.full((2, 3, 4), -0.5))
    assert project(near, norm, length).equal(near) and project(0 * far, norm, length).equal(0 * far)


@pytest.mark.parametrize("task, encoding", CASES)
def test_a_ball_of_radius_0_costs_nothing_and_trains_the_same_parameters(task, encoding, bert_dir):
    model, batch = tiny_model(bert_dir, pair_encoding=encoding), a_batch(task, bert_dir)
    assert value_of(settings(epsilon=0.0), model, batch).item() == 0
    plain, more = total(model, batch), total(model, batch, settings(weight=10.0))
    assert more.item() > plain.item() and "encode" not in vars(model.bert)
    assert all(p.grad is None for p in model.parameters())  # the ascent leaves none behind
    assert reached(model, plain) == reached(model, more)


@pytest.mark.parametrize("task, encoding", CASES)
def test_it_finds_worse_than_noise_of_the_same_length(task, encoding, bert_dir):
    """And more steps find worse still; noise alone is the baseline that it must beat."""
    model, batch = tiny_model(bert_dir, pair_encoding=encoding), a_batch(task, bert_dir)
    found = []
    for options in ({"sigma": 0.2, "steps": 0}, {"steps": 1}, {"steps": 5}):
        torch.manual_seed(1)
        found.append(value_of(settings(**{"norm": "l2-token", "epsilon": 0.2, "step_size": 0.2, **options}), model,
                              batch).item())
    assert 2 * found[0] < found[1] < found[2]  # noise of length 0.2 √24 a token


def test_the_penalty_pulls_at_both_passes(bert_dir):
    """Its gradient is that of l_s with delta held fixed, f(x) included."""
    model, batch = tiny_model(bert_dir), a_batch("sst", bert_dir)
    deltas = []
    with perturbed(model.bert, deltas, lambda x: 0.3 * torch.sin(x)):
        other = forward_of(model, batch).logits
    apart = smoothness("sst", forward_of(model, batch).logits, other)
    value = value_of(lambda forward: smart_from(deltas[0].detach(), forward), model, batch)
    expected, found = (torch.autograd.grad(x, model.bert.word_embedding.weight) for x in (apart, value))
    torch.testing.assert_close(found, expected)


def smart_from(delta, forward):
    """Return SMART's value where the ascent ends at `delta`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(smart.__globals__, "ascend", lambda *args: [delta])
        return smart(forward)


@pytest.mark.parametrize("task, encoding", CASES)
def test_deltas_meet_their_calls_and_padding_gets_none(task, encoding, bert_dir, monkeypatch):
    model, batch = tiny_model(bert_dir, pair_encoding=encoding), a_batch(task, bert_dir, extra=3)
    seen, encode = [], type(model.bert).encode
    monkeypatch.setattr(type(model.bert), "encode", lambda self, x, mask, **options: (
        seen.append((x.detach(), mask)) or encode(self, x, mask, **options)))
    forward_of(model, batch).logits
    clean, seen[:] = list(seen), []
    deltas = ascend(model.bert, torch.ones_like, lambda: forward_of(model, batch).logits.square().sum(),
                    lambda delta, gradient: torch.full_like(delta, 2.0))
    assert len(deltas) == len(clean) == len(seen) and (len(seen) == 1) == (encoding == "cross")
    with perturbed(model.bert, deltas, None):
        forward_of(model, batch).logits
    for (x, mask), (once, _), (twice, _) in zip(clean, seen[:len(clean)], seen[len(clean):], strict=True):
        torch.testing.assert_close(once - x, mask.unsqueeze(-1).expand_as(x).float())
        torch.testing.assert_close(twice - x, 2 * mask.unsqueeze(-1).expand_as(x).float())


@pytest.mark.parametrize("task, encoding", CASES)
def test_padding_does_not_change_the_value(task, encoding, bert_dir, monkeypatch):
    same_noise(monkeypatch)
    model = tiny_model(bert_dir, pair_encoding=encoding)
    narrow, wide = (value_of(settings(norm="l2"), model, a_batch(task, bert_dir, extra)) for extra in (0, 3))
    torch.testing.assert_close(narrow, wide, rtol=1e-3, atol=0)
    assert narrow.item() > 0


@pytest.mark.parametrize("task, encoding", CASES)
def test_bf16_finds_about_the_same(task, encoding, bert_dir, monkeypatch):
    same_noise(monkeypatch)
    model, batch = tiny_model(bert_dir, pair_encoding=encoding), a_batch(task, bert_dir)
    exact = value_of(settings(norm="l2-token"), model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = value_of(settings(norm="l2-token"), model, batch)
    assert rough.item() == pytest.approx(exact.item(), rel=0.3)


def test_the_loss_falls_in_20_steps(bert_dir):
    model, batch = tiny_model(bert_dir, dropout=0.1), a_batch("sst", bert_dir)
    losses = losses_of_20_steps(model, lambda: total(model, batch, smart))
    assert losses[-1] < 0.6 * losses[0]


def test_no_step_waits_for_the_device_and_wrong_norms_are_named(bert_dir, monkeypatch):
    model, batch = tiny_model(bert_dir), a_batch("sst", bert_dir)
    with no_waiting(monkeypatch):
        total(model, batch, smart).backward()
    with pytest.raises(ValueError, match="smart:norm=l1: norm must be one of inf, l2, inf-token, l2-token"):
        from_spec("smart:norm=l1", PENALTIES)
    with pytest.raises(UserError, match="holds its output, the features: give them batches of texts"):
        total(model, {**batch, "features": torch.ones(4, 24)}, smart)
