"""Bottleneck adapters, Houlsby's and Pfeiffer's: by hand, identity at first, what is trained, other techniques."""
# ruff: noqa: F401, F811 - fixtures are imported, and are the names of parameters

from functools import partial

import pytest
import torch
import torch.nn as nn

from engine.fast_dropout import FastDropout, use_fast_dropout
from extensions import ADAPT
from extensions.architecture.dropout_sites import set_dropout
from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.pals import pals
from extensions.architecture.task_layers import task_layers
from extensions.specs import from_spec
from extensions.tuning.adapters import AdapterDropout, adapters
from extensions.tuning.lora import lora
from extensions.tuning.mixout import mixout
from tests.helpers.peft_cases import (
    IDS,
    MASK,
    comes_back,
    four_layers,
    learns,
    nothing_changes_until_training,
    one_layer,
    only_adds,
    padding_changes_nothing,
    small_bert,
    trainable_names,
    trained,
)
from tests.helpers.regularizer_cases import tiny_model

HOULSBY, PFEIFFER = (partial(adapters, style=style, size=6) for style in ("houlsby", "pfeiffer"))
PARTS = [f"{way}.{part}" for way in ("down", "up") for part in ("weight", "bias")]
both_styles = pytest.mark.parametrize("technique", [HOULSBY, PFEIFFER])


@both_styles
def test_nothing_changes_until_training(technique, one_layer):
    nothing_changes_until_training(one_layer, technique)


@pytest.mark.parametrize("style, layers, chosen", [("houlsby", "all", [0, 1, 2, 3]), ("houlsby", "last-2", [2, 3]),
                                                   ("pfeiffer", "all", [0, 1, 2, 3]), ("pfeiffer", "mid-1", [1])])
def test_what_is_trained(style, layers, chosen, four_layers):
    bert = small_bert(four_layers, partial(adapters, style=style, size=6, layers=layers))
    places = ["attention_dropout", "out_dropout"] if style == "houlsby" else ["out_layer_norm"]
    expected = {f"bert_layers.{i}.{place}.adapter.{part}" for i in chosen for place in places for part in PARTS}
    if style == "houlsby":
        norms = [f"bert_layers.{i}.{norm}" for i in chosen for norm in ("attention_layer_norm", "out_layer_norm")]
        norms += ["embed_layer_norm"] if layers == "all" else []
        expected |= {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    assert trainable_names(bert) == expected
    adapter = sum(p.numel() for name, p in bert.named_parameters() if ".adapter." in name)
    assert adapter == len(chosen) * len(places) * (2 * 6 * 24 + 6 + 24)  # 2 m C + m + C, section 2.1 of Houlsby et al.


@both_styles
def test_the_keys_of_the_checkpoint_stay(technique, one_layer):
    only_adds(one_layer, technique, tuple(PARTS))


@pytest.mark.parametrize("style, activation", [("houlsby", "gelu"), ("houlsby", "relu"), ("pfeiffer", "relu")])
@torch.no_grad()
def test_a_layer_by_hand(style, activation, one_layer):
    bert = small_bert(one_layer, partial(adapters, style=style, size=6, activation=activation))
    layer, x = trained(bert, frozen=True).eval().bert_layers[0], torch.randn(1, 3, 24)

    def changed(x, adapter):
        down, up = adapter.down, adapter.up
        inner = getattr(nn.functional, activation)(x @ down.weight.T + down.bias)
        return inner @ up.weight.T + up.bias

    def norm(x, norm):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

    y = layer.attention_dense(layer.self_attention(x, torch.zeros(1, 1, 1, 3)))
    if style == "houlsby":
        y = y + changed(y, layer.attention_dropout.adapter)
    attended = norm(x + y, layer.attention_layer_norm)
    y = layer.out_dense(nn.functional.gelu(layer.interm_dense(attended)))
    if style == "houlsby":
        expected = norm(attended + y + changed(y, layer.out_dropout.adapter), layer.out_layer_norm)
    else:
        normed = norm(attended + y, layer.out_layer_norm)
        expected = norm(attended + y + changed(normed, layer.out_layer_norm.adapter), layer.out_layer_norm)
    torch.testing.assert_close(layer(x, torch.zeros(1, 1, 1, 3)), expected, rtol=0, atol=1e-5)


def test_dropout_comes_before_the_adapter_and_keeps_its_site(one_layer):
    model = tiny_model(one_layer, dropout=0.1)
    HOULSBY(model.bert)
    layer = model.bert.bert_layers[0]
    set_dropout(model, {"attention-output": 0.25, "ffn-output": 0.5})
    use_fast_dropout(model)
    assert (layer.attention_dropout.dropout.p, layer.out_dropout.dropout.p) == (0.25, 0.5)
    assert all(type(site) is AdapterDropout for site in (layer.attention_dropout, layer.out_dropout))
    adapter = trained(layer.out_dropout.adapter)
    x = torch.ones(50, 24)
    torch.manual_seed(1)
    dropped = FastDropout(0.5)(x)
    torch.manual_seed(1)
    assert layer.out_dropout(x).equal(dropped + adapter(dropped)) and 0.3 < dropped.eq(0).float().mean() < 0.7
    assert layer.eval().out_dropout(x).equal(x + adapter(x))


@both_styles
def test_it_comes_back_from_a_checkpoint(technique, one_layer):
    comes_back(one_layer, technique)


@both_styles
def test_padding_changes_nothing(technique, one_layer):
    padding_changes_nothing(one_layer, technique)


@both_styles
def test_the_loss_falls_in_20_steps(technique, one_layer, monkeypatch):
    learns(one_layer, technique, monkeypatch)


@both_styles
def test_a_frozen_encoder_gets_adapters_that_are_trained(technique, one_layer):
    model = tiny_model(one_layer, option="pretrain")
    technique(model.bert)
    assert trainable_names(model.bert) == trainable_names(small_bert(one_layer, technique))


@both_styles
@pytest.mark.parametrize("other", [partial(pals, size=8, heads=2), task_layers, extra_attention, mixout, HOULSBY,
                                   PFEIFFER])
@torch.no_grad()
def test_beside_other_techniques_in_either_order(other, technique, one_layer):
    """The output stays that of the plain encoder at first, or the second is refused in one line."""
    output = small_bert(one_layer)(IDS, MASK)["last_hidden_state"]
    for both in ((technique, other), (other, technique)):
        if other is technique:
            with pytest.raises(ValueError, match="AdapterDropout is in the place|an adapter after it already"):
                small_bert(one_layer, *both)
            continue
        bert = small_bert(one_layer, *both)
        options = {"task": "sts"} if getattr(bert, "takes_task", False) else {}
        assert any(".adapter." in name for name in trainable_names(bert))
        torch.testing.assert_close(bert(IDS, MASK, **options)["last_hidden_state"], output, rtol=0, atol=1e-5)


@both_styles
def test_with_lora_in_either_order(technique, one_layer):
    """Each trains what it would train alone, the layer norms of Houlsby et al. too."""
    alone = trainable_names(small_bert(one_layer, technique)) | trainable_names(small_bert(one_layer, lora))
    assert trainable_names(small_bert(one_layer, lora, technique)) == alone
    assert trainable_names(small_bert(one_layer, technique, lora)) == alone


@pytest.mark.parametrize("option, message", [
    ("style=house", "style must be one of houlsby, pfeiffer"), ("size=0", "size must be at least 1"),
    ("activation=swish", "activation must be one of relu, "), ("bottleneck=8", "did you mean size")])
def test_wrong_options_are_named(option, message, one_layer):
    with pytest.raises(ValueError, match=message):
        from_spec(f"adapters:{option}", ADAPT)
    for style in ("houlsby", "pfeiffer"):
        with pytest.raises(ValueError, match="nothing is left|no feed-forward"):
            small_bert(one_layer, extra_attention, partial(adapters, style=style, layers="last-1"))
