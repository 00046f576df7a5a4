"""Mixout: every weight is one of two, the mean is right, nothing changes at first, in evaluation and in checkpoints."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from engine.packed_attention import is_packable, pack_attention
from extensions import ADAPT
from extensions.specs import from_spec
from extensions.tuning.mixout import MixLinear, mixout
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps
from tests.helpers.regularizer_cases import COURSE_TASKS, a_batch, no_waiting, tiny_model, total


def mixed(bert_dir, dropout=0.0, option="finetune", **options):
    """Return a tiny model with mixout in its encoder."""
    model = tiny_model(bert_dir, dropout, option=option)
    mixout(model.bert, **options)
    return model


def moved(model):
    """Change the encoder's weights, the same at every call; return the model."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.bert.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("unit", ["neuron", "weight"])
@pytest.mark.parametrize("task", COURSE_TASKS)
def test_nothing_changes_at_first_and_in_evaluation(task, unit, bert_dir):
    plain, model = tiny_model(bert_dir), mixed(bert_dir, p=0.7, unit=unit)
    batch = a_batch(task, bert_dir)
    assert forward_of(model, batch).logits.equal(forward_of(plain, batch).logits)
    moved(plain), moved(model)
    assert not torch.allclose(forward_of(model, batch).logits, forward_of(plain, batch).logits, atol=1e-3)
    assert not forward_of(model, batch).logits.equal(forward_of(model, batch).logits)  # every pass draws anew
    assert forward_of(model.eval(), batch).logits.equal(forward_of(plain.eval(), batch).logits)


def test_exactly_the_linear_layers_of_the_encoder_with_their_own_parameters(bert_dir):
    plain, model = tiny_model(bert_dir), tiny_model(bert_dir)
    before = dict(model.named_parameters())
    mixout(model.bert)
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    assert list(model.state_dict()) == list(plain.state_dict())
    linear = {name for name, module in plain.bert.named_modules() if type(module) is nn.Linear}
    assert {f"bert.{name}" for name in linear} == {
        name for name, module in model.named_modules() if isinstance(module, MixLinear)}
    assert len(linear) == 7 and type(model.sentiment_head[1]) is nn.Linear
    attention = model.bert.bert_layers[0].self_attention
    assert not is_packable(attention)
    model.load_state_dict(plain.state_dict())


def drawn(unit, p, N=1, seed=0):
    """Return w (4, 6), u, and N mixed weights in float64, read off by sending the unit vectors through the layer."""
    torch.manual_seed(seed)
    layer = MixLinear(nn.Linear(6, 4, dtype=torch.float64), p, unit)
    u = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 6, dtype=torch.float64))
    eye = torch.eye(6, dtype=torch.float64)
    return layer, u, torch.stack([(layer(eye) - layer.bias).T.detach() for _ in range(N)])


@pytest.mark.parametrize("unit", ["neuron", "weight"])
def test_by_hand(unit):
    """With p = 0.2: dropped, ((1 - 0) u - 0.2 u) / 0.8 = u; kept, (w - 0.2 u) / 0.8; a column a neuron; mean w."""
    layer, u, weights = drawn(unit, 0.2, N=1000)
    w = layer.weight.detach()
    dropped, kept = ((weights - value).abs() < 1e-9 for value in (u, (w - 0.2 * u) / 0.8))
    assert (dropped ^ kept).all()
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=0.04)
    whole_columns = (dropped == dropped[:, :1]).all(dim=1)  # (N, 6)
    assert whole_columns.all() if unit == "neuron" else whole_columns.double().mean() < 0.6
    torch.testing.assert_close(weights.mean(0), w, rtol=0, atol=0.3)


def test_the_gradient_is_that_of_the_formula():
    layer, u, _ = drawn("neuron", 0.5)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.manual_seed(1)
    layer(x).sum().backward()
    torch.manual_seed(1)
    kept = F.dropout(torch.ones(1, 6, dtype=torch.float64), 0.5)
    assert 0 < (kept == 0).sum() < 6
    torch.testing.assert_close(layer.weight.grad, (x.sum(0) * kept).expand(4, 6))
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 3.0, dtype=torch.float64))


def test_p_0_is_the_plain_layer_and_wrong_options_are_named(bert_dir):
    batch = a_batch("sst", bert_dir)
    plain = forward_of(moved(tiny_model(bert_dir)), batch).logits
    assert forward_of(moved(mixed(bert_dir, p=0.0)), batch).logits.equal(plain)
    for option, message in (("p=1.0", "p must be at least 0 and below 1"), ("unit=row", "one of neuron, weight")):
        with pytest.raises(ValueError, match=message):
            from_spec(f"mixout:{option}", ADAPT)


def test_padding_changes_nothing_and_a_frozen_encoder_neither(bert_dir):
    model = moved(mixed(bert_dir))
    values = []
    for extra in (0, 3):
        torch.manual_seed(1)
        values.append(total(model, a_batch("sst", bert_dir, extra)))
    torch.testing.assert_close(*values)
    frozen = mixed(bert_dir, option="pretrain")
    assert not any(p.requires_grad for p in frozen.bert.parameters())
    batch = a_batch("sst", bert_dir)
    assert forward_of(frozen, batch).logits.equal(forward_of(tiny_model(bert_dir, option="pretrain"), batch).logits)


@pytest.mark.parametrize("unit", ["neuron", "weight"])
def test_the_loss_falls_in_20_steps_of_bf16_without_waiting(unit, bert_dir, monkeypatch):
    model, batch = mixed(bert_dir, p=0.3, unit=unit), a_batch("sst", bert_dir)
    pack_attention(model)

    def loss():
        with torch.autocast("cpu", torch.bfloat16), no_waiting(monkeypatch):
            return total(model, batch)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.6 * losses[0]
