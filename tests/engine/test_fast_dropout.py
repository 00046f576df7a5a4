"""FastDropout: its rate, its expectation, its gradient, its seed, and where it is the identity or the parent.

It has no parameters; that it trains as nn.Dropout does follows from its expectation and gradient.
"""

import math

import pytest
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from bert import BertModel
from config import BertConfig
from engine import fast_dropout
from engine.fast_dropout import FastDropout, use_fast_dropout

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9, 1e-4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rate_and_expectation(p, dtype):
    torch.manual_seed(0)
    n = 400_003
    y = FastDropout(p)(torch.ones(n, dtype=dtype)).double()
    dropped = (y == 0).sum().item()
    assert abs(dropped - n * p) < 4 * math.sqrt(n * p * (1 - p)) + n / 32768
    scale = y.max().item()
    assert set(y.unique().tolist()) == {0.0, scale}
    assert scale == pytest.approx(1 / (1 - p), rel=2e-4 if dtype != torch.bfloat16 else 4e-3)
    # To the rounded p the scale is exact, so that only the chance of the draw is left.
    exact = round(p * 32768) / 32768
    assert y.mean().item() == pytest.approx(1, abs=4 * math.sqrt(exact / (1 - exact) / n) + (
        4e-3 if dtype == torch.bfloat16 else 0))


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (FastDropout(0.5)(torch.ones(400_000)) > 0).float() - 0.5
    for distance in (1, 2, 3, 4, 8):  # four neighbours share a draw
        correlation = 4 * (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(correlation) < 4 / math.sqrt(400_000)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5, 11), (), (1,), (0, 4), (2, 2)])
def test_gradient_takes_the_same_mask(dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = FastDropout(0.4)(x)
    y.backward(torch.ones_like(y))
    assert y.shape == x.shape and y.dtype == x.grad.dtype == dtype
    assert torch.equal(y, x * x.grad)


def test_transposed_and_expanded_inputs():
    torch.manual_seed(0)
    for x in (torch.ones(30, 50).t(), torch.ones(1, 50).expand(30, 50)):
        y = FastDropout(0.5)(x)
        assert y.shape == x.shape and set(y.unique().tolist()) == {0.0, 2.0}


def test_seeded_draws_repeat_and_calls_differ():
    dropout, x = FastDropout(0.3), torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x)) and torch.equal(second, dropout(x))


def test_gradient_checkpointing_draws_the_same_mask_again():
    dropout, x = FastDropout(0.3), torch.ones(1000, requires_grad=True)
    y = checkpoint(lambda x: dropout(x) ** 2, x, use_reentrant=False)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * y)  # y = (m x)², its gradient 2 m² x


@pytest.mark.parametrize("p, training", [(0.3, False), (0.0, True)])
def test_identity(p, training):
    x, state = torch.randn(5, 7), torch.get_rng_state()
    assert torch.equal(FastDropout(p).train(training)(x), x)
    if not training:
        assert torch.equal(torch.get_rng_state(), state)


def test_p_of_one_drops_everything():
    assert not FastDropout(1.0)(torch.ones(9)).any()


def test_takes_the_place_of_every_plain_dropout(monkeypatch):
    class Dropout(nn.Dropout):
        """Somebody's own."""

    model = BertModel(BertConfig(vocab_size=100, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                 intermediate_size=16))
    model.extra = nn.Sequential(Dropout(0.2), nn.Dropout(0.2, inplace=True), nn.Dropout(0.7))
    model.eval()
    keys = model.state_dict().keys()
    use_fast_dropout(model)
    assert model.state_dict().keys() == keys
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Dropout)]
    assert kinds.count(FastDropout) == 1 + 2 * 3 + 1 and kinds.count(Dropout) == kinds.count(nn.Dropout) == 1
    assert model.extra[2].p == 0.7 and not model.extra[2].training

    drawn, multiplier = [], fast_dropout.multiplier
    monkeypatch.setattr(fast_dropout, "multiplier", lambda x, p: drawn.append(x.shape) or multiplier(x, p))
    model.train()(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3))
    assert len(drawn) == 1 + 2 * 2  # the attention's own is in the fused kernel
