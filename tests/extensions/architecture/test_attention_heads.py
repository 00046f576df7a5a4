"""Other numbers of heads, of all or of keys and values: an oracle with repeated heads, parameters, refusals."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from engine.packed_attention import PackedSelfAttention, pack_attention
from extensions.architecture.attention_heads import gqa, mha, mqa
from tests.helpers.architecture_cases import (
    check_checkpoint,
    check_learning,
    check_padding,
    disturb,
    parameters_of,
    plain_names,
    states,
    tiny_model,
    with_parts,
)
from tests.helpers.fixtures_tiny import tiny_bert_dir
from utils import get_extended_attention_mask


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory):
    """Return the directory of a tiny BERT with 4 heads of 6 features in 2 layers."""
    return str(tiny_bert_dir(tmp_path_factory.mktemp("heads"), hidden_size=24, num_attention_heads=4,
                             num_hidden_layers=2))


def inputs(T=5, C=24):
    """Return hidden states (2, T, C) in float64 and an additive mask with padding."""
    torch.manual_seed(2)
    mask = torch.tensor([[1] * T, [1] * (T - 2) + [0] * 2])
    return torch.randn(2, T, C, dtype=torch.float64), get_extended_attention_mask(mask, torch.float64)


def by_hand(x, mask, wq, wk, wv, heads):
    """Return attention of weights and biases (C, C), (C,), one head after the other."""
    D, found = x.shape[-1] // heads, []
    for h in range(heads):
        q, k, v = (F.linear(x, weight[h * D:(h + 1) * D], bias[h * D:(h + 1) * D]) for weight, bias in (wq, wk, wv))
        found.append((q @ k.transpose(1, 2) / D**0.5 + mask[:, 0]).softmax(-1) @ v)
    return torch.cat(found, dim=-1)


def weights(linear):
    return linear.weight.detach().clone(), linear.bias.detach().clone()


def pooled(pair, heads, groups):
    """Return (weight, bias) in which every head is the mean of its group's, as many heads as before."""
    return [torch.cat([part.chunk(heads)[first + i] * 0 + sum(
        part.chunk(heads)[first:first + heads // groups]) / (heads // groups)
        for first in range(0, heads, heads // groups) for i in range(heads // groups)]) for part in pair]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part, heads, groups", [
    (mqa, 4, 1), (partial(gqa, groups=2), 4, 2), (partial(gqa, groups=4), 4, 4), (partial(mha, heads=8), 8, 8),
    (partial(mha, heads=2), 2, 2), (mha, 4, 4)])
def test_as_an_oracle_with_repeated_heads(part, heads, groups, packed, wide_dir):
    model = disturb(tiny_model(wide_dir)).double()
    attention, (x, mask) = model.bert.bert_layers[1].self_attention, inputs()
    q, k, v = (weights(linear) for linear in (attention.query, attention.key, attention.value))
    part(model.bert)
    if packed:
        pack_attention(model)
        assert isinstance(attention, PackedSelfAttention)
    expected = by_hand(x, mask, q, pooled(k, heads, groups), pooled(v, heads, groups), heads)
    torch.testing.assert_close(attention(x, mask), expected)
    plain = by_hand(x, mask, q, k, v, 4)
    assert torch.allclose(expected, plain) == (heads == groups == 4)


def test_heads_of_one_group_learn_apart(wide_dir):
    """The gradient of a shared key is the sum of what its query heads ask for."""
    model = disturb(tiny_model(wide_dir)).double()
    mqa(model.bert)
    attention, (x, mask) = model.bert.bert_layers[0].self_attention, inputs()
    full = [[part.repeat(4, *[1] * (part.ndim - 1)).requires_grad_() for part in weights(linear)]
            for linear in (attention.key, attention.value)]
    by_hand(x, mask, weights(attention.query), *full, 4).square().sum().backward()
    attention(x, mask).square().sum().backward()
    for linear, (weight, _) in zip((attention.key, attention.value), full, strict=True):
        torch.testing.assert_close(linear.weight.grad, weight.grad.unflatten(0, (4, 6)).sum(0))


def test_as_many_groups_as_heads_change_nothing_and_fewer_do(wide_dir):
    plain = states(tiny_model(wide_dir).bert)
    assert states(with_parts(wide_dir, partial(gqa, groups=4)).bert).equal(plain)
    assert states(with_parts(wide_dir, mha).bert).equal(plain)
    assert states(with_parts(wide_dir, partial(mha, heads=4)).bert).equal(plain)
    for part in (mqa, partial(gqa, groups=2), partial(mha, heads=8)):
        bert, moved = with_parts(wide_dir, part).bert, disturb(tiny_model(wide_dir)).bert
        before = states(moved)
        assert not torch.allclose(states(bert), plain, atol=1e-5)
        part(moved)
        assert not torch.allclose(states(moved), before, atol=1e-2)


def test_the_parameters(wide_dir):
    for part in (mqa, partial(gqa, groups=2), partial(mha, heads=8)):
        assert parameters_of(wide_dir, part) == (plain_names(wide_dir), set(), set())
        bert = tiny_model(wide_dir).bert
        own = dict(bert.named_parameters())
        part(bert)
        assert all(own[name] is p for name, p in bert.named_parameters())
    attention = with_parts(wide_dir, partial(gqa, groups=2)).bert.bert_layers[0].self_attention
    assert attention.key.weight.shape == attention.value.weight.shape == (12, 24)
    assert attention.key.out_features == 12 and attention.query.weight.shape == (24, 24)


def test_what_cannot_be_is_refused(wide_dir, bert_dir):
    for part, message in ((partial(mha, heads=36), "heads=36 does not divide the hidden size 24: 0.7 .* choose 24"),
                          (partial(mha, heads=5), "4.8 features a head; choose 4 or 6"),
                          (partial(gqa, groups=3), "groups=3 does not divide .* 4; choose of 1, 2, 4"),
                          (partial(gqa, groups=0), "groups=0"), (partial(gqa, groups=8), "groups=8")):
        with pytest.raises(ValueError, match=message):
            with_parts(wide_dir, part)


@pytest.mark.parametrize("part", [mqa, partial(gqa, groups=2), partial(mha, heads=8)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_padding_checkpoints_and_training(part, dropout, wide_dir, monkeypatch):
    if not dropout:
        check_padding(wide_dir, part)
        check_checkpoint(wide_dir, part)
    check_learning(wide_dir, part, monkeypatch=monkeypatch, dropout=dropout, factor=0.8)
