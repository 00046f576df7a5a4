"""Relative biases, ALiBi and rotary positions: oracles, identity, what is trained, shifts, padding, training."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from extensions import POSITIONS
from extensions.architecture.attention_heads import mha
from extensions.architecture.positions import alibi, distances, relative, slopes_of, t5_bucket
from extensions.architecture.rotary import rotary, rotate
from extensions.specs import from_spec
from tests.helpers.architecture_cases import (
    IDS,
    MASK,
    a_batch,
    attention_input,
    check_checkpoint,
    check_learning,
    check_padding,
    disturb,
    parameters_of,
    plain_names,
    states,
    tiny_model,
    with_parts,
    with_scores,
)
from tests.helpers.oracle import run_oracle

CLIPPED = partial(relative, by="clipped", largest=3)
PARTS = (relative, CLIPPED, rotary, alibi)
TABLE, ABSOLUTE = "bert_layers.0.self_attention.relative_bias", "pos_embedding.weight"


@pytest.mark.parametrize("packed", [False, True])
def test_relative_and_alibi_by_hand(packed, bert_dir):
    attention, x, mask = attention_input(CLIPPED, bert_dir, packed=packed)
    table = attention.relative_bias
    expected = with_scores(attention, x, mask, lambda h, i, j, q, k: (
        (q * k).sum(-1) / 12**0.5 + table[3 + max(-3, min(3, j - i)), h]))
    torch.testing.assert_close(attention(x, mask), expected)
    attention, x, mask = attention_input(partial(relative, buckets=8, largest=4), bert_dir, packed=packed)
    table = attention.relative_bias  # four buckets for what comes before, of 0, 1, 2, 3 and more; then those after
    expected = with_scores(attention, x, mask, lambda h, i, j, q, k: (
        (q * k).sum(-1) / 12**0.5 + table[4 * (j > i) + min(3, abs(j - i)), h]))
    torch.testing.assert_close(attention(x, mask), expected)
    attention, x, mask = attention_input(alibi, bert_dir, packed=packed)
    expected = with_scores(  # two heads: slopes 2^-4 and 2^-8
        attention, x, mask, lambda h, i, j, q, k: (q * k).sum(-1) / 12**0.5 - abs(i - j) * (1 / 16, 1 / 256)[h])
    torch.testing.assert_close(attention(x, mask), expected)


def test_a_bias_that_is_trained_alone_is_left_to_the_formula(bert_dir, monkeypatch):
    """CUDA's efficient kernel would read memory that is not its own (pytorch issue 148476)."""
    kernels, attend = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: (
        kernels.append(torch.backends.cuda.mem_efficient_sdp_enabled()), attend(*args))[1])
    attention, x, mask = attention_input(relative, bert_dir)
    expected = attention(x, mask)
    for linear in (attention.query, attention.key, attention.value):
        linear.requires_grad_(False)
    torch.testing.assert_close(attention(x, mask), expected)
    attention(x.requires_grad_(), mask)  # as behind a layer that is trained
    assert kernels == [True, False, True]


@pytest.mark.parametrize("base", [10000, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_rotary_by_complex_numbers(packed, base, bert_dir):
    attention, x, mask = attention_input(partial(rotary, base=float(base)), bert_dir, packed=packed)
    angles = torch.tensor([base ** (-2 * f / 12) for f in range(6)], dtype=torch.float64)

    def score(h, i, j, q, k):
        q, k = (torch.view_as_complex(y.unflatten(-1, (6, 2)).contiguous()) for y in (q, k))
        return (q * k.conj() * torch.polar(torch.ones_like(angles), (i - j) * angles)).sum(-1).real / 12**0.5
    torch.testing.assert_close(attention(x, mask), with_scores(attention, x, mask, score), rtol=1e-5, atol=1e-6)


def test_as_transformers():
    distance = distances(300, "cpu")
    assert distance[3, 5] == 2
    for buckets, largest in ((32, 128), (8, 20)):
        expected = run_oracle("""
            from transformers.models.t5.modeling_t5 import T5Attention
            result = T5Attention._relative_position_bucket(
                distance, bidirectional=True, num_buckets=buckets, max_distance=largest)
        """, distance=distance, buckets=buckets, largest=largest)
        assert t5_bucket(distance, buckets, largest).equal(expected)
    x = torch.randn(2, 3, 7, 8)
    angles = torch.arange(7)[:, None] * 10000 ** (-torch.arange(4) / 4)
    expected = run_oracle("""
        from transformers.models.roformer.modeling_roformer import RoFormerSelfAttention
        result = RoFormerSelfAttention.apply_rotary_position_embeddings(table, x, x)[0]
    """, x=x, table=torch.cat([angles.sin(), angles.cos()], dim=-1)[None, None])
    torch.testing.assert_close(rotate(x, 10000.0), expected)
    for heads in (2, 8, 12, 6, 16, 24, 1):
        slopes = run_oracle("""
            import torch
            from transformers.models.bloom.modeling_bloom import build_alibi_tensor
            result = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        """, heads=heads)
        torch.testing.assert_close(torch.tensor(slopes_of(heads)), slopes)


def test_relative_starts_as_the_pretrained_function_and_the_others_do_not(bert_dir):
    plain = states(tiny_model(bert_dir).bert)
    for part in (relative, CLIPPED):
        torch.testing.assert_close(states(with_parts(bert_dir, part).bert), plain, rtol=0, atol=1e-6)
    moved = states(disturb(tiny_model(bert_dir)).bert)
    for part in PARTS[:2]:
        bert = disturb(tiny_model(bert_dir)).bert
        part(bert)
        with torch.no_grad():
            bert.bert_layers[0].self_attention.relative_bias.normal_()
        assert not torch.allclose(states(bert), moved, atol=1e-2)
    for part in (partial(rotary, keep=True), partial(alibi, keep=True)):
        bert = disturb(tiny_model(bert_dir)).bert
        part(bert)
        assert not torch.allclose(states(bert), moved, atol=1e-3)


def test_without_absolute_positions_only_distances_count(bert_dir):
    """Where the absolute embeddings are removed, padding before a text moves it and changes nothing."""
    shifted, mask = (torch.nn.functional.pad(x[1:], (4, 0)) for x in (IDS, MASK))
    for part in (partial(relative, keep=False), rotary, alibi):
        bert = disturb(with_parts(bert_dir, part).bert)
        torch.testing.assert_close(states(bert, shifted, mask), states(bert)[4:], rtol=1e-4, atol=1e-5)
        swapped = IDS[1:, [0, 2, 1, 3, 4]]
        there = states(bert, swapped, MASK[1:])[[0, 2, 1, 3, 4]]
        assert not torch.allclose(there, states(bert)[4:], atol=1e-3)  # but their order does
    bert = disturb(with_parts(bert_dir, partial(rotary, keep=True)).bert)
    assert not torch.allclose(states(bert, shifted, mask), states(bert)[4:], atol=1e-3)


def test_the_parameters(bert_dir):
    plain = plain_names(bert_dir)
    for part in (relative, CLIPPED):
        assert parameters_of(bert_dir, part) == (plain | {TABLE}, {TABLE}, {TABLE})
    assert with_parts(bert_dir, relative).bert.bert_layers[0].self_attention.relative_bias.shape == (32, 2)
    assert with_parts(bert_dir, CLIPPED).bert.bert_layers[0].self_attention.relative_bias.shape == (7, 2)
    for part in (rotary, alibi):
        assert parameters_of(bert_dir, part) == (plain - {ABSOLUTE}, set(), set())
        assert parameters_of(bert_dir, partial(part, keep=True)) == (plain, set(), set())
        bert = with_parts(bert_dir, part).bert
        assert bert.state_dict().keys() == tiny_model(bert_dir).bert.state_dict().keys()
        assert not bert.pos_embedding.weight.any()


def test_what_cannot_be_is_refused(bert_dir):
    for option, message in (("by=row", "by=row: by must be one of t5, clipped"), ("buckets=6", "multiple of 4"),
                            ("largest=8", "more than a quarter")):
        with pytest.raises(ValueError, match=message):
            from_spec(f"relative:{option}", POSITIONS)
    with pytest.raises(ValueError, match="a head has 3 features"):
        with_parts(bert_dir, partial(mha, heads=8), rotary)
    with pytest.raises(ValueError, match="there already"):
        with_parts(bert_dir, relative, relative)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_padding_checkpoints_and_training(part, dropout, bert_dir, monkeypatch):
    if not dropout:
        check_padding(bert_dir, part)
        check_checkpoint(bert_dir, part)
    model = check_learning(bert_dir, part, monkeypatch=monkeypatch, dropout=dropout, factor=0.8)
    if part in PARTS[:2]:
        learned = model.bert.bert_layers[0].self_attention.relative_bias
        assert learned.abs().max() > 0.01
        if part is CLIPPED:
            assert learned.abs().min() > 0  # texts are longer than 3 tokens both ways
    assert a_batch("sst", bert_dir)["token_ids"].shape[1] > 4
