"""Gated and narrowed feed-forwards: the pretrained function, formulas by hand, parameters, a start that learns."""

import copy
from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from bert import BertModel
from extensions.architecture.glu import GatedLinear, geglu, gelu, swiglu
from tests.helpers.architecture_cases import (
    a_batch,
    check_checkpoint,
    check_learning,
    check_padding,
    disturb,
    parameters_of,
    plain_names,
    random_words,
    reached,
    states,
    tiny_model,
    total,
    with_parts,
)

UP = {"bert_layers.0.interm_dense.up.weight", "bert_layers.0.interm_dense.up.bias"}
GATE = {"bert_layers.0.interm_dense.gate.weight", "bert_layers.0.interm_dense.gate.bias"}
DENSE = {"bert_layers.0.interm_dense.weight", "bert_layers.0.interm_dense.bias"}


def feed_forward(layer, x):
    """Return what a layer's feed-forward makes of x."""
    return layer.out_dense(layer.interm_af(layer.interm_dense(x)))


def test_geglu_starts_as_the_pretrained_function_bit_by_bit(bert_dir):
    assert states(with_parts(bert_dir, geglu).bert).equal(states(tiny_model(bert_dir).bert))
    bert = disturb(with_parts(bert_dir, geglu).bert)
    assert not torch.allclose(states(bert), states(disturb(tiny_model(bert_dir).bert)), atol=1e-2)


def test_swiglu_starts_near_it():
    z = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    error = (F.silu(1.702 * z) / 1.702 - F.gelu(z)).abs()
    assert error.max().item() == pytest.approx(0.0203, abs=5e-5) and abs(z[error.argmax()]).item() == pytest.approx(
        2.27, abs=0.01)
    bert = BertModel.from_pretrained("minilm").double()
    layer, x = bert.bert_layers[0], torch.randn(50, 384, dtype=torch.float64)
    before = layer.interm_af(layer.interm_dense(x))
    ids, mask = random_words()
    whole = states(bert, ids, mask)
    swiglu(bert)
    after = layer.interm_af(layer.interm_dense(x))
    assert 0.001 < (after - before).abs().max() <= 0.02035
    assert 0.01 < (states(bert, ids, mask) - whole).norm() / whole.norm() < 0.15


@pytest.mark.parametrize("part, activation", [(geglu, "gelu"), (swiglu, "silu")])
def test_the_formula(part, activation, bert_dir):
    layer = disturb(with_parts(bert_dir, part).bert.double()).bert_layers[0]
    x = torch.randn(3, 24, dtype=torch.float64)
    gate, up, out = layer.interm_dense.gate, layer.interm_dense.up, layer.out_dense
    z = x @ gate.weight.T + gate.bias
    acted = z * (1 + torch.erf(z / 2**0.5)) / 2 if activation == "gelu" else z / (1 + (-z).exp())
    torch.testing.assert_close(feed_forward(layer, x), acted * (x @ up.weight.T + up.bias) @ out.weight.T + out.bias)


def test_zero_is_no_dead_start(bert_dir):
    """dL/dV = (dL/dy · gelu(W x + b)) xᵀ by hand, and every row of V has one that tells it from the others."""
    torch.manual_seed(0)
    gated = GatedLinear(nn.Linear(4, 3, dtype=torch.float64), F.gelu, 1.0)
    x, upstream = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    (gated(x) * upstream).sum().backward()
    torch.testing.assert_close(gated.up.weight.grad, (upstream * F.gelu(gated.gate(x))).T @ x)
    model = with_parts(bert_dir, geglu)
    batch = a_batch("sst", bert_dir)
    assert {f"bert.{name}" for name in UP | GATE} <= reached(model, total(model, batch))
    total(model, batch).backward()
    rows = model.bert.bert_layers[0].interm_dense.up.weight.grad
    assert (rows.norm(dim=1) > 0).all() and len(torch.unique(rows.sign(), dim=0)) > 1


@pytest.mark.parametrize("part", [geglu, swiglu, partial(geglu, width=16)])
def test_the_parameters(part, bert_dir):
    names, of_pretrain, frozen = parameters_of(bert_dir, part)
    assert names == plain_names(bert_dir) - DENSE | GATE | UP
    assert of_pretrain == frozen == UP
    plain = tiny_model(bert_dir).bert
    before, gate = sum(p.numel() for p in plain.parameters()), plain.bert_layers[0].interm_dense
    part(plain)
    assert plain.bert_layers[0].interm_dense.gate is gate
    if part is geglu:
        assert sum(p.numel() for p in plain.parameters()) == before + 24 * 64 + 64


def test_width_keeps_the_neurons_that_have_the_largest_outgoing_weights(bert_dir):
    narrowed, masked = tiny_model(bert_dir).bert, tiny_model(bert_dir).bert
    own = dict(narrowed.named_parameters())
    gelu(narrowed, width=16)
    layer = masked.bert_layers[0]
    norms = layer.out_dense.weight.norm(dim=0)
    assert norms.sort().values[-16] > norms.sort().values[-17]
    with torch.no_grad():
        layer.out_dense.weight[:, norms < norms.sort().values[-16]] = 0
    torch.testing.assert_close(states(narrowed), states(masked))
    now = narrowed.bert_layers[0]
    assert now.interm_dense.weight.shape == (16, 24) and now.out_dense.weight.shape == (24, 16)
    assert (now.interm_dense.out_features, now.out_dense.in_features) == (16, 16)
    assert all(own[name] is p for name, p in narrowed.named_parameters())
    gated = with_parts(bert_dir, partial(geglu, width=16)).bert
    torch.testing.assert_close(states(gated), states(masked))
    assert states(with_parts(bert_dir, gelu).bert).equal(states(tiny_model(bert_dir).bert))


def test_what_cannot_be_is_refused(bert_dir):
    for part, message in ((partial(gelu, width=65), "width=65: .* 64 neurons"),
                          (partial(swiglu, width=999), "width=999")):
        with pytest.raises(ValueError, match=message):
            with_parts(bert_dir, part)
    with pytest.raises(ValueError, match="another technique"):
        with_parts(bert_dir, swiglu, geglu)


@pytest.mark.parametrize("part", [geglu, swiglu, partial(swiglu, width=16), partial(gelu, width=16)])
def test_padding_checkpoints_and_training(part, bert_dir, monkeypatch):
    check_padding(bert_dir, part)
    check_checkpoint(bert_dir, part)
    model = check_learning(bert_dir, part, monkeypatch=monkeypatch)
    if not (isinstance(part, partial) and part.func is gelu):
        assert model.bert.bert_layers[0].interm_dense.up.weight.abs().min() > 0
    assert states(copy.deepcopy(model).bert).equal(states(model.bert))
