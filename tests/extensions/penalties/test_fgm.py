"""FGM: by hand in float64 and on a tiny BERT. "Identity at initialisation" is here: epsilon = 0 is the loss again."""

import pytest
import torch
import torch.nn.functional as F

from extensions.penalties.fgm import fgm
from tests.helpers.fixtures_tiny import losses_of_20_steps
from tests.helpers.regularizer_cases import (
    CASES,
    a_batch,
    by_hand,
    forward_of,
    no_waiting,
    reached,
    tiny_model,
    total,
    value_of,
)


def settings(**options):
    """Return fgm with options of its own."""
    return lambda forward: fgm(forward, **options)


def test_a_similarity_by_hand():
    """z = w · Σ x_t has the gradient 2 / B (z - y) w for each of T tokens: r_t = epsilon sign(z - y) w / (√T ‖w‖)."""
    model, batch = by_hand("sts", 1)
    w, tokens, y = model.W.detach()[:, 0], torch.tensor([3.0, 2.0]).double(), batch["labels"].double()
    z = forward_of(model, batch).logits.detach()
    moved = z + 0.7 * (z - y).sign() * tokens.sqrt() * w.norm()
    value = value_of(settings(weight=2.0, epsilon=0.7), model, batch)
    torch.testing.assert_close(value, 2 * ((moved - y) ** 2).mean())
    assert value > 2 * F.mse_loss(z, y)


def test_classes_by_hand():
    """The gradient of -log p(y) with respect to x_t is W (p - onehot(y)) / B, the same for each token."""
    model, batch = by_hand("sst", 3)
    z, W, expected = forward_of(model, batch).logits.detach(), model.W.detach(), []
    for row, T in enumerate([3, 2]):
        y = batch["labels"][row]
        g = W @ (z[row].softmax(0) - F.one_hot(y, 3))
        r = 0.5 * g / (T ** 0.5 * g.norm())
        expected.append(-(z[row] + T * r @ W).log_softmax(0)[y])
    torch.testing.assert_close(value_of(settings(epsilon=0.5), model, batch), sum(expected) / 2)


@pytest.mark.parametrize("task, encoding", CASES)
def test_epsilon_0_is_the_loss_again_and_more_is_worse(task, encoding, bert_dir, monkeypatch):
    model, batch = tiny_model(bert_dir, pair_encoding=encoding), a_batch(task, bert_dir)
    plain = total(model, batch)
    torch.testing.assert_close(value_of(settings(epsilon=0.0), model, batch), plain)
    values = [value_of(settings(epsilon=epsilon), model, batch).item() for epsilon in (0.1, 1.0)]
    assert plain.item() + 1e-4 < values[0] < values[1]
    assert reached(model, total(model, batch)) == reached(model, total(model, batch, fgm))
    assert all(p.grad is None for p in model.parameters()) and "encode" not in vars(model.bert)
    if encoding == "cross":
        torch.testing.assert_close(value_of(fgm, model, batch), value_of(fgm, model, a_batch(task, bert_dir, extra=3)))


def test_the_loss_falls_in_20_steps_without_waiting(bert_dir, monkeypatch):
    model, batch = tiny_model(bert_dir, dropout=0.1), a_batch("sst", bert_dir)

    def loss():
        with torch.autocast("cpu", torch.bfloat16), no_waiting(monkeypatch):
            return total(model, batch, fgm)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.6 * losses[0]
