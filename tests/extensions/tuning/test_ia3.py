"""(IA)³: equal to peft, identity at first, what is trained, the place of each vector, merging."""
# ruff: noqa: F401, F811 - fixtures are imported, and are the names of parameters

from functools import partial

import pytest
import torch
import torch.nn as nn

from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.pals import pals
from extensions.architecture.task_layers import task_layers
from extensions.tuning.ia3 import ia3
from extensions.tuning.lora import lora
from tests.helpers.peft_cases import (
    IDS,
    MASK,
    comes_back,
    four_layers,
    learns,
    merges,
    nothing_changes_until_training,
    one_layer,
    only_adds,
    padding_changes_nothing,
    same_as_peft,
    small_bert,
    trainable_names,
    trained,
)


def test_nothing_changes_until_training(one_layer):
    nothing_changes_until_training(one_layer, ia3)


@pytest.mark.parametrize("layers, chosen", [("all", [0, 1, 2, 3]), ("mid-2", [1, 2])])
def test_what_is_trained(layers, chosen, four_layers):
    bert = small_bert(four_layers, partial(ia3, layers=layers))
    assert trainable_names(bert) == {f"bert_layers.{i}.{part}.ia3_l" for i in chosen
                                     for part in ("self_attention.key", "self_attention.value", "out_dense")}
    assert sum(p.numel() for p in bert.parameters() if p.requires_grad) == len(chosen) * (24 + 24 + 64)


def test_the_keys_of_the_checkpoint_stay(one_layer):
    only_adds(one_layer, ia3, "ia3_l")


@pytest.mark.parametrize("layers, pattern", [("all", "[0-3]"), ("last-2", "[23]")])
def test_equals_peft(layers, pattern, four_layers):
    inner = rf"encoder\.layer\.{pattern}\.output\.dense"
    bert = small_bert(four_layers, partial(ia3, layers=layers))
    same_as_peft(bert, four_layers, "IA3Config", feedforward_modules=inner,
                 target_modules=rf"encoder\.layer\.{pattern}\.attention\.self\.(key|value)|{inner}")


@torch.no_grad()
def test_a_layer_is_the_papers_formula(one_layer):
    bert = trained(small_bert(one_layer, ia3), frozen=True).eval()
    layer, x = bert.bert_layers[0], torch.randn(3, 24)
    attention = layer.self_attention

    def linear(part, x):
        return x @ part.weight.T + part.bias

    query, key, value = (linear(part, x) for part in (attention.query, attention.key, attention.value))
    key, value = attention.key.ia3_l * key, attention.value.ia3_l * value
    heads = [torch.softmax(query[:, i:i + 12] @ key[:, i:i + 12].T / 12**0.5, dim=1) @ value[:, i:i + 12]
             for i in (0, 12)]
    attended = layer.attention_layer_norm(x + linear(layer.attention_dense, torch.cat(heads, dim=1)))
    inner = layer.out_dense.ia3_l * nn.functional.gelu(linear(layer.interm_dense, attended))
    expected = layer.out_layer_norm(attended + linear(layer.out_dense, inner))
    torch.testing.assert_close(layer(x[None], torch.zeros(1, 1, 1, 3))[0], expected)


def test_merging(one_layer):
    merges(one_layer, ia3)


def test_it_comes_back_from_a_checkpoint(one_layer):
    comes_back(one_layer, ia3)


def test_padding_changes_nothing(one_layer):
    padding_changes_nothing(one_layer, ia3)


def test_the_loss_falls_in_20_steps(one_layer, monkeypatch):
    learns(one_layer, ia3, monkeypatch)


@pytest.mark.parametrize("other", [partial(pals, size=8, heads=2), task_layers, partial(lora, targets="query")])
@torch.no_grad()
def test_beside_other_techniques_in_either_order(other, one_layer):
    output = small_bert(one_layer)(IDS, MASK)["last_hidden_state"]
    for both in ((ia3, other), (other, ia3)):
        bert = small_bert(one_layer, *both)
        options = {"task": "sts"} if getattr(bert, "takes_task", False) else {}
        torch.testing.assert_close(bert(IDS, MASK, **options)["last_hidden_state"], output, rtol=0, atol=1e-6)
        assert sum(name.endswith("ia3_l") for name in trainable_names(bert)) == (9 if other is task_layers else 3)


def test_what_cannot_be_combined_is_refused(one_layer):
    for both in ((ia3, lora), (lora, ia3)):
        with pytest.raises(ValueError, match="layer 0's self_attention.value is a (ScaledOutput|LoRALinear) already"):
            small_bert(one_layer, *both)
    with pytest.raises(ValueError, match="nothing is left for it to replace"):
        small_bert(one_layer, extra_attention, partial(ia3, layers="last-1"))
    with pytest.raises(ValueError, match="first-N, mid-N or last-N"):
        small_bert(one_layer, partial(ia3, layers="last"))
