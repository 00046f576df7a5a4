"""DoRA: equal to peft, identity at first, what is trained, the norms' gradient, merging."""
# ruff: noqa: F401, F811 - fixtures are imported, and are the names of parameters

from functools import partial

import pytest
import torch
import torch.nn as nn

from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.task_layers import task_layers
from extensions.tuning.dora import DoRALinear, dora
from extensions.tuning.lora import LoRALinear, lora
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
)

ALL = "query+key+value+attention-output+ffn"


@pytest.mark.parametrize("options", [{}, {"targets": ALL, "rslora": True}])
def test_nothing_changes_until_training(options, one_layer):
    nothing_changes_until_training(one_layer, partial(dora, **options))


@torch.no_grad()
def test_nothing_changes_at_first_in_bf16(one_layer):
    """The ratio of magnitude and norm is exactly 1, whatever the products are computed in."""
    bert = small_bert(one_layer, partial(dora, targets=ALL))
    with torch.autocast("cpu", torch.bfloat16):
        assert all(module.scale().eq(1).all() for module in bert.modules() if isinstance(module, DoRALinear))
        assert bert.bert_layers[0].self_attention.query(torch.randn(3, 24)).dtype == torch.bfloat16


def test_what_is_trained(four_layers):
    bert = small_bert(four_layers, partial(dora, targets="key+ffn", layers="last-1"))
    assert trainable_names(bert) == {f"bert_layers.3.{part}.{name}" for name in ("lora_A", "lora_B", "magnitude")
                                     for part in ("self_attention.key", "interm_dense", "out_dense")}
    layer = bert.bert_layers[3]
    assert [linear.magnitude.shape for linear in (layer.interm_dense, layer.out_dense)] == [(64,), (24,)]
    torch.testing.assert_close(layer.interm_dense.magnitude, layer.interm_dense.weight.norm(dim=1))


def test_the_keys_of_the_checkpoint_stay(one_layer):
    only_adds(one_layer, partial(dora, targets=ALL), ("lora_A", "lora_B", "magnitude"))


@pytest.mark.parametrize("options, theirs", [
    ({"targets": "query+value"}, {"target_modules": ["query", "value"]}),
    ({"rank": 4, "alpha": 3.0, "rslora": True, "targets": "key+ffn", "layers": "first-2"},
     {"r": 4, "lora_alpha": 3.0, "use_rslora": True, "target_modules":
      r"encoder\.layer\.[01]\.(attention\.self\.key|intermediate\.dense|output\.dense)"})])
def test_equals_peft(options, theirs, four_layers):
    same_as_peft(small_bert(four_layers, partial(dora, **options)), four_layers, "LoraConfig",
                 **{"r": 8, "lora_alpha": 16, "use_dora": True, **theirs})


def test_by_hand():
    """V = W + s B A = (3, 4), of norm 5; m = 10; x = (1, 1): y = 10 (3 + 4) / 5 + b; dy/dm = 7/5, and with ‖V‖ constant
    dy/dB = 10/5 s A x = 2 s."""
    linear = nn.Linear(2, 1)
    linear.weight.data, linear.bias.data = torch.tensor([[3.0, 2.0]]), torch.tensor([0.5])
    layer = DoRALinear(linear, 1, 2.0, 0.0, False)
    assert layer.magnitude.item() == pytest.approx(13**0.5)
    layer.lora_A.data, layer.lora_B.data = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]])
    layer.magnitude.data = torch.tensor([10.0])
    y = layer(torch.ones(2))
    assert y.item() == pytest.approx(14.5)
    y.backward()
    assert (layer.magnitude.grad.item(), layer.lora_B.grad.item()) == (pytest.approx(1.4), pytest.approx(4.0))


def test_the_direction_learns_apart_from_the_magnitude(one_layer):
    """However far A and B go, a row of the effective weight is as long as the magnitude says; LoRA's grows."""
    for technique, kind, same in ((dora, DoRALinear, True), (lora, LoRALinear, False)):
        layer = small_bert(one_layer, technique).bert_layers[0].self_attention.query
        assert type(layer) is kind
        before = layer.weight.norm(dim=1)
        nn.init.normal_(layer.lora_B)
        assert torch.allclose(layer.effective()[0].norm(dim=1), before, rtol=1e-5) == same


@pytest.mark.parametrize("options", [{}, {"targets": ALL, "rslora": True, "dropout": 0.1}])
def test_merging(options, one_layer):
    merges(one_layer, partial(dora, **options))


def test_it_comes_back_from_a_checkpoint(one_layer):
    comes_back(one_layer, partial(dora, targets=ALL))


def test_padding_changes_nothing(one_layer):
    padding_changes_nothing(one_layer, dora)


def test_the_loss_falls_in_20_steps(one_layer, monkeypatch):
    learns(one_layer, partial(dora, dropout=0.1), monkeypatch)


@torch.no_grad()
def test_beside_other_techniques(one_layer):
    output = small_bert(one_layer)(IDS, MASK)["last_hidden_state"]
    for techniques, options in (((task_layers, dora), {"task": "para"}), ((dora, task_layers), {"task": "para"}),
                                ((extra_attention, dora), {}), ((dora, partial(lora, targets="key")), {})):
        bert = small_bert(one_layer, *techniques)
        torch.testing.assert_close(bert(IDS, MASK, **options)["last_hidden_state"], output, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="query is a LoRALinear already: leave one of the two out"):
        small_bert(one_layer, lora, dora)


def test_a_layer_of_zeros_is_refused(one_layer):
    def zero(bert):
        nn.init.zeros_(bert.bert_layers[0].out_dense.weight)

    with pytest.raises(ValueError, match="all 0, and so no direction: name dora before"):
        small_bert(one_layer, zero, partial(dora, targets="ffn"))
