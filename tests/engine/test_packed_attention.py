"""PackedSelfAttention against BertSelfAttention: outputs, gradients, keys, dropout, padding, what is left alone.

It is the same function of the same parameters, so that it equals the plain module takes the place of training it.
"""

import copy
from collections import Counter

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from bert import BertModel, BertSelfAttention
from config import BertConfig
from engine.fast_dropout import FastDropout
from engine.packed_attention import PackedSelfAttention, is_packable, pack_attention
from utils import get_extended_attention_mask

SIZES = {"vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
         "intermediate_size": 32}
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture
def twins():
    """Return a BERT without dropout in training mode, and a packed copy of it."""
    torch.manual_seed(0)
    bert = BertModel(BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
                                **SIZES)).train()
    packed = copy.deepcopy(bert)
    pack_attention(packed)
    return bert, packed


def padded_batch():
    """Return input ids and mask, (3, 7), with padding in it."""
    lengths = torch.tensor([7, 4, 1])
    mask = (torch.arange(7) < lengths[:, None]).long()
    return torch.randint(1, 100, (3, 7), generator=torch.Generator().manual_seed(1)) * mask, mask


def attention_input(B=3, T=7, p=0.0):
    """Return an attention with dropout p in training mode, its input (B, T, 24) and an additive mask with padding."""
    torch.manual_seed(0)
    attention = BertSelfAttention(BertConfig(attention_probs_dropout_prob=p, **SIZES)).train()
    mask = (torch.arange(T) < torch.tensor([T, 4, 1])[:B, None]).long()
    return attention, torch.randn(B, T, 24), get_extended_attention_mask(mask, torch.float32)


def packed_copy(attention):
    """Return a packed copy of one attention."""
    copied = copy.deepcopy(attention)
    pack_attention(copied)
    return copied


class NoDraw(FastDropout):
    """Dropout that counts as active and drops nothing: it shows the written-out path."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_outputs_and_gradients_equal_the_plain_model(twins, written_out, mode):
    for module in twins[1].modules():
        if written_out and isinstance(module, PackedSelfAttention):
            module.dropout = NoDraw(0.1)
    ids, mask = padded_batch()
    outputs = [getattr(model, mode)()(ids, mask)["last_hidden_state"] for model in twins]
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)
    for model, output in zip(twins, outputs, strict=True):
        (output[:, 0] ** 3).mean().backward()
    for (name, p), q in zip(twins[0].named_parameters(), twins[1].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, **CLOSE, msg=name)


def test_query_key_and_value_are_one_product(twins, monkeypatch):
    """In place of three (C, C) products an attention; the fourth is that of its output, and the pooler has one."""
    linear, shapes = F.linear, []
    monkeypatch.setattr(F, "linear", lambda x, weight, bias: shapes.append(weight.shape) or linear(x, weight, bias))
    for model, expected in zip(twins, ({(24, 24): 9}, {(24, 24): 3, (72, 24): 2}), strict=True):
        shapes.clear()
        model(*padded_batch())
        assert {shape: n for shape, n in Counter(shapes).items() if 32 not in shape} == expected


def test_same_parameters_and_keys(twins):
    bert, packed = twins
    assert list(packed.state_dict()) == list(bert.state_dict())
    packed.load_state_dict(bert.state_dict())
    parameters = list(bert.parameters())
    pack_attention(bert)
    assert all(p is q for p, q in zip(bert.parameters(), parameters, strict=True))  # those that the optimizer holds
    assert [type(layer.self_attention) for layer in bert.bert_layers] == [PackedSelfAttention] * 2


def test_attention_dropout_has_the_right_mean_and_variance():
    attention, x, mask = attention_input(p=0.3)
    packed = packed_copy(attention)
    draws = []
    with torch.no_grad():
        for module in (attention, packed):
            torch.manual_seed(1)
            draws.append(torch.stack([module(x, mask) for _ in range(4000)]).double())
        expected = attention.eval()(x, mask).double()
    plain, ours = draws
    scale = plain.std(0) / 4000**0.5  # standard error of each number's mean
    assert ((ours.mean(0) - expected).abs() <= 5 * scale + 1e-7).all()
    # With nothing else to attend to, the single token is kept or dropped as a whole.
    assert (ours[:, 2, :, :8] == 0).all(-1).double().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(ours.var(0), plain.var(0), rtol=0.2, atol=1e-9)
    assert not torch.equal(ours[0], ours[1])


def test_padding_does_not_change_the_output():
    attention, x, mask = attention_input()
    packed = packed_copy(attention)
    packed.dropout = NoDraw(0.1)
    expected = packed(x, mask)
    x[1, 4:] = 1e3
    torch.testing.assert_close(packed(x, mask)[1, :4], expected[1, :4], **CLOSE)
    torch.testing.assert_close(packed(x[1:2, :4], mask[1:2, ..., :4])[0], expected[1, :4], **CLOSE)


def test_bf16_autocast_is_as_near_to_fp32_as_the_plain_one():
    attention, x, mask = attention_input()
    packed = packed_copy(attention)
    packed.dropout = NoDraw(0.1)
    exact = attention(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(module(x, mask.bfloat16()).float() - exact).abs().max() for module in (attention, packed)]
    assert errors[1] < 1.5 * errors[0] + 1e-3


class Lora(nn.Linear):
    """A projection with something added, as LoRA's."""

    def forward(self, x):
        return super().forward(x) + 1.0


def test_replaced_projections_are_left_alone(twins):
    bert, packed = twins
    for model in twins:
        for layer in model.bert_layers:
            layer.self_attention.query.__class__ = Lora  # in `packed` after the packing
    ids, mask = padded_batch()
    expected = bert(ids, mask)["pooler_output"]
    torch.testing.assert_close(packed(ids, mask)["pooler_output"], expected, **CLOSE)
    bert.bert_layers[1].self_attention.query.__class__ = nn.Linear
    pack_attention(bert)
    assert [is_packable(layer.self_attention) for layer in bert.bert_layers] == [False, True]

    calls = []
    packed = bert.bert_layers[1].self_attention
    packed.key.register_forward_hook(lambda *arguments: calls.append(1))
    bert(ids, mask)
    assert calls


class Doubled(BertSelfAttention):
    """An attention with a method of its own, and the parent's for the rest."""

    def attention(self, key, query, value, attention_mask):
        return 2 * super().attention(key, query, value, attention_mask)


class Swapped(BertSelfAttention):
    """An attention that projects in its own way."""

    def transform(self, x, linear_layer):
        return super().transform(x, linear_layer).flip(-1)


@pytest.mark.parametrize("kind", [Doubled, Swapped])
def test_what_another_attention_overrides_goes_on(kind, twins):
    bert, ids_mask = twins[0], padded_batch()
    for layer in bert.bert_layers:
        layer.self_attention.__class__ = kind
    expected = bert(*ids_mask)["last_hidden_state"]
    pack_attention(bert)
    assert all(isinstance(layer.self_attention, kind) and isinstance(layer.self_attention, PackedSelfAttention)
               and isinstance(layer.self_attention.dropout, FastDropout) for layer in bert.bert_layers)
    for module in bert.modules():
        if isinstance(module, PackedSelfAttention):
            module.dropout = NoDraw(0.1)
    torch.testing.assert_close(bert(*ids_mask)["last_hidden_state"], expected, **CLOSE)
    copied = copy.deepcopy(bert)
    torch.testing.assert_close(copied(*ids_mask)["last_hidden_state"], expected, **CLOSE)


def test_a_dropout_that_is_not_plain_is_left_alone(twins):
    bert = twins[0]
    bert.bert_layers[1].self_attention.dropout = own = NoDraw(0.2)
    pack_attention(bert)
    assert bert.bert_layers[1].self_attention.dropout is own


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SIZES)).train()
    pack_attention(bert)
    ids, mask = padded_batch()
    gradients = []
    for again in (False, True):
        bert.config.gradient_checkpointing = again
        torch.manual_seed(2)
        bert(ids, mask)["pooler_output"].sum().backward()
        gradients.append([p.grad for p in bert.parameters()])
        bert.zero_grad()
    for g, h in zip(*gradients, strict=True):
        torch.testing.assert_close(h, g, **CLOSE)
