"""Layers appended behind a closed gate: identity, the formula, parameters, gradients, over other techniques."""

from functools import partial

import pytest
import torch

from bert import BertLayer
from extensions import ADAPT
from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.extra_layers import GatedLayer, extra_layers
from extensions.architecture.pals import pals
from extensions.architecture.rmsnorm import RMSNorm, rmsnorm
from extensions.architecture.task_layers import task_layers
from extensions.specs import from_spec
from tests.helpers.architecture_cases import (
    IDS,
    MASK,
    a_batch,
    check_checkpoint,
    check_learning,
    check_padding,
    disturb,
    parameters_of,
    plain_names,
    reached,
    states,
    tiny_model,
    total,
    with_parts,
)
from utils import get_extended_attention_mask

FRESH = partial(extra_layers, n=2, start="fresh")


def test_nothing_changes_at_first(bert_dir):
    plain = states(tiny_model(bert_dir).bert)
    for part in (extra_layers, FRESH):
        bert = with_parts(bert_dir, part).bert
        assert states(bert).equal(plain)
        with torch.no_grad():
            bert.bert_layers[-1].gate.fill_(1.0)
        assert not torch.allclose(states(bert), plain, atol=1e-3)


def test_the_formula_and_whose_copies_they_are(bert_dir):
    bert = disturb(tiny_model(bert_dir)).bert
    extra_layers(bert)
    x, mask = torch.randn(2, 5, 24), get_extended_attention_mask(MASK, torch.float32)
    top, added = bert.eval().bert_layers
    torch.testing.assert_close(added.layer(x, mask), top(x, mask))
    assert type(added) is GatedLayer and type(added.layer) is BertLayer
    assert not {p.data_ptr() for p in top.parameters()} & {p.data_ptr() for p in added.parameters()}
    for a in (0.0, 0.25, 1.0):
        with torch.no_grad():
            added.gate.fill_(a)
        torch.testing.assert_close(added(x, mask), x + a * (top(x, mask) - x))
    FRESH(bert)
    assert len(bert.bert_layers) == 4
    fresh = bert.bert_layers[-1].layer
    assert not fresh.interm_dense.bias.any() and (fresh.out_layer_norm.weight == 1).all()
    assert not fresh.self_attention.query.weight.equal(bert.bert_layers[-2].layer.self_attention.query.weight)


def test_the_parameters_are_trained_in_a_frozen_encoder_too(bert_dir):
    plain = plain_names(bert_dir)
    layer = {name.removeprefix("bert_layers.0.") for name in plain if name.startswith("bert_layers.0.")}
    own = {"bert_layers.1.gate", *(f"bert_layers.1.layer.{name}" for name in layer)}
    assert parameters_of(bert_dir, extra_layers) == (plain | own, own, own)


def test_the_gate_opens_first(bert_dir):
    """dL/da = <dL/dh', layer(h) - h>, and the layer's gradients are 0 until a is not."""
    model, batch = with_parts(bert_dir, extra_layers), a_batch("sst", bert_dir)
    assert {name for name, _ in model.named_parameters() if ".1." in name and "bert_layers" in name} <= reached(
        model, total(model, batch))
    total(model, batch).backward()
    added = model.bert.bert_layers[1]
    assert added.gate.grad.abs() > 0
    assert all(not p.grad.any() for p in added.layer.parameters())
    with torch.no_grad():
        added.gate.fill_(0.01)
    model.zero_grad()
    total(model, batch).backward()
    assert any(p.grad.abs().max() > 0 for p in added.layer.parameters())


@pytest.mark.parametrize("below", [partial(pals, size=8, heads=2), task_layers, extra_attention, rmsnorm, extra_layers])
def test_over_layers_that_techniques_have_changed(below, bert_dir):
    bert = disturb(tiny_model(bert_dir)).bert
    below(bert)
    options = {"task": "sts"} if getattr(bert, "takes_task", False) else {}
    before = bert.eval()(IDS, MASK, **options)["last_hidden_state"]
    extra_layers(bert)
    assert bert(IDS, MASK, **options)["last_hidden_state"].equal(before)
    assert type(bert.bert_layers[-1].layer) is BertLayer
    assert isinstance(bert.bert_layers[-1].layer.out_layer_norm, RMSNorm) == (below is rmsnorm)


def test_what_cannot_be_is_refused(bert_dir):
    with pytest.raises(ValueError, match="start=zero: start must be one of copy, fresh"):
        from_spec("extra-layers:start=zero", ADAPT)
    for above in (task_layers, pals):
        with pytest.raises(ValueError, match="before what appends layers"):
            with_parts(bert_dir, extra_layers, above)


@pytest.mark.parametrize("part", [extra_layers, FRESH])
def test_padding_checkpoints_and_training(part, bert_dir, monkeypatch):
    check_padding(bert_dir, part)
    check_checkpoint(bert_dir, part)
    model = check_learning(bert_dir, part, monkeypatch=monkeypatch, checkpointing=True)
    assert model.bert.bert_layers[1].gate.abs() > 0.01
