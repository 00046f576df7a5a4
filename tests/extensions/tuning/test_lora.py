"""LoRA: equal to peft, identity at first, what is trained, merging, beside other techniques."""
# ruff: noqa: F401, F811 - fixtures are imported, and are the names of parameters

from functools import partial

import pytest
import torch
import torch.nn as nn

from engine.fast_dropout import FastDropout, use_fast_dropout
from extensions import ADAPT
from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.glu import swiglu
from extensions.architecture.pals import pals
from extensions.architecture.task_layers import task_layers
from extensions.specs import from_spec
from extensions.tuning.lora import LoRALinear, lora
from extensions.tuning.mixout import MixLinear, mixout
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

ALL = "query+key+value+attention-output+ffn"
PARTS = {"query": "self_attention.query", "key": "self_attention.key", "value": "self_attention.value",
         "attention-output": "attention_dense", "interm": "interm_dense", "out": "out_dense"}


@pytest.mark.parametrize("options", [{}, {"targets": ALL, "rank": 3, "rslora": True}])
def test_nothing_changes_until_training(options, one_layer):
    nothing_changes_until_training(one_layer, partial(lora, **options))


@pytest.mark.parametrize("targets, layers, parts, chosen", [
    ("query+value", "all", ["query", "value"], [0, 1, 2, 3]), ("key", "first-1", ["key"], [0]),
    ("attention-output", "mid-2", ["attention-output"], [1, 2]), ("ffn", "last-2", ["interm", "out"], [2, 3]),
    (ALL, "last-1", list(PARTS), [3])])
def test_what_is_trained(targets, layers, parts, chosen, four_layers):
    bert = small_bert(four_layers, partial(lora, rank=2, targets=targets, layers=layers))
    assert trainable_names(bert) == {f"bert_layers.{i}.{PARTS[part]}.lora_{matrix}"
                                     for i in chosen for part in parts for matrix in "AB"}
    a_layer = {"query": 96, "key": 96, "value": 96, "attention-output": 96, "interm": 176, "out": 176}  # 2 (in + out)
    assert sum(p.numel() for p in bert.parameters() if p.requires_grad) == len(chosen) * sum(map(a_layer.get, parts))


def test_the_keys_of_the_checkpoint_stay(one_layer):
    only_adds(one_layer, partial(lora, targets=ALL), ("lora_A", "lora_B"))


@pytest.mark.parametrize("options, theirs", [
    ({"targets": "query+value"}, {"target_modules": ["query", "value"]}),
    ({"rank": 4, "alpha": 3.0, "rslora": True, "targets": "key+ffn", "layers": "mid-2"},
     {"r": 4, "lora_alpha": 3.0, "use_rslora": True, "target_modules":
      r"encoder\.layer\.[12]\.(attention\.self\.key|intermediate\.dense|output\.dense)"})])
def test_equals_peft(options, theirs, four_layers):
    same_as_peft(small_bert(four_layers, partial(lora, **options)), four_layers, "LoraConfig",
                 **{"r": 8, "lora_alpha": 16, **theirs})


def test_by_hand():
    """W = 0, b = (1, 2), A = (1, 1), B = (1, 3)ᵀ, alpha 8: y = b + s B (x_1 + x_2), s 8/2, or 8/√2."""
    linear = nn.Linear(2, 2)
    nn.init.zeros_(linear.weight), linear.bias.data.copy_(torch.tensor([1.0, 2.0]))
    for rslora, s in ((False, 4.0), (True, 8 / 2**0.5)):
        layer = LoRALinear(linear, 2, 8.0, 0.0, rslora)
        layer.lora_A.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        layer.lora_B.data = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        torch.testing.assert_close(layer(torch.tensor([2.0, 1.0])), torch.tensor([1 + 3 * s, 2 + 9 * s]))


def test_dropout_is_on_the_low_rank_path_alone(one_layer):
    bert = trained(small_bert(one_layer, partial(lora, dropout=0.5)))
    assert not bert(IDS, MASK)["last_hidden_state"].equal(bert(IDS, MASK)["last_hidden_state"])
    layer, x = bert.bert_layers[0].self_attention.query, torch.ones(4000, 24)
    plain, full = nn.functional.linear(x, layer.weight, layer.bias), layer.eval()(x)
    torch.testing.assert_close(layer.train()(x).mean(0) - plain[0], full[0] - plain[0], rtol=0, atol=0.1)
    nn.init.zeros_(layer.lora_B)
    assert layer(x).equal(plain)
    use_fast_dropout(bert)
    assert type(layer.lora_dropout) is FastDropout and layer.lora_dropout.p == 0.5


@pytest.mark.parametrize("options", [{}, {"targets": ALL, "rslora": True, "dropout": 0.1}])
def test_merging(options, one_layer):
    merges(one_layer, partial(lora, **options))


def test_it_comes_back_from_a_checkpoint(one_layer):
    comes_back(one_layer, partial(lora, targets=ALL))


def test_padding_changes_nothing(one_layer):
    padding_changes_nothing(one_layer, lora)


def test_the_loss_falls_in_20_steps(one_layer, monkeypatch):
    learns(one_layer, partial(lora, dropout=0.1), monkeypatch)


@pytest.mark.parametrize("option, message", [
    ("targets=query+quarry", "targets must be words of query, key, .*, joined by"), ("targets=+", "joined by"),
    ("alpha=0.0", "alpha must be above 0"), ("dropout=1.0", "dropout must be at least 0 and below 1"),
    ("layers=last-5", "first-N, mid-N or last-N, with N from 1 to 4"), ("layers=top", "first-N, mid-N or last-N"),
    ("r=4", "no option 'r'; did you mean rank"), ("lora_alpha=4", "did you mean alpha"), ("lr=1", "did you mean --lr")])
def test_wrong_options_are_named(option, message, four_layers):
    with pytest.raises(ValueError, match=message) as error:
        small_bert(four_layers, from_spec(f"lora:{option}", ADAPT))
    assert "\n" not in str(error.value)


def test_twice_for_other_targets_but_not_for_the_same(one_layer):
    first, second = partial(lora, targets="query"), partial(lora, targets="value", rank=2)
    nothing_changes_until_training(one_layer, lambda bert: (first(bert), second(bert)))
    with pytest.raises(ValueError, match=r"self_attention.query is a LoRALinear already: leave one of the two out"):
        small_bert(one_layer, first, first)


def test_mixout_only_afterwards(one_layer):
    bert = small_bert(one_layer, lora, mixout)
    layer = bert.bert_layers[0]
    assert type(layer.self_attention.query) is LoRALinear and type(layer.self_attention.key) is MixLinear
    with pytest.raises(ValueError, match="a MixLinear: name this one first"):
        small_bert(one_layer, mixout, lora)


@pytest.mark.parametrize("lora_first", [True, False])
@pytest.mark.parametrize("other", [partial(pals, size=8, heads=2), task_layers, extra_attention])
@torch.no_grad()
def test_beside_techniques_that_replace_layers(other, lora_first, one_layer):
    """Each task's copy of a layer has matrices of its own; extra attention has them where it is named first."""
    both = (lora, other) if lora_first else (other, lora)
    bert, options = small_bert(one_layer, *both), {} if other is extra_attention else {"task": "sts"}
    output = small_bert(one_layer)(IDS, MASK)["last_hidden_state"]
    torch.testing.assert_close(bert(IDS, MASK, **options)["last_hidden_state"], output, rtol=0, atol=1e-6)
    layers = {name.rpartition(".lora_")[0] for name in trainable_names(bert) if "lora_" in name}
    attentions = {task_layers: [f"0.by_task.{task}" for task in ("sst", "para", "sts")],
                  extra_attention: ["0"] if lora_first else ["0", "1"]}.get(other, ["0"])
    assert layers == {f"bert_layers.{i}.self_attention.{part}" for i in attentions for part in ("query", "value")}
    state = {name: tensor.clone() for name, tensor in trained(bert).state_dict().items()}
    fresh = small_bert(one_layer, *both)
    fresh.load_state_dict(state)
    assert fresh(IDS, MASK, **options)["last_hidden_state"].equal(bert(IDS, MASK, **options)["last_hidden_state"])


def test_parts_within_a_part_are_found_and_absent_ones_refused(one_layer):
    def gated(bert):
        bert.bert_layers[0].interm_dense = nn.Sequential(nn.Linear(24, 8), nn.Linear(8, 64))
        bert.bert_layers[0].out_dense = nn.Identity()

    bert = small_bert(one_layer, gated, partial(lora, targets="ffn"))
    assert {name.split("interm_dense.")[1] for name in trainable_names(bert) if "lora" in name} == {
        "0.lora_A", "0.lora_B", "1.lora_A", "1.lora_B"}
    bert = small_bert(one_layer, swiglu, partial(lora, targets="ffn"))
    assert {name.rpartition(".")[0].split(".", 2)[2] for name in trainable_names(bert) if "lora" in name} == {
        "interm_dense.gate", "out_dense"}  # the new matrix is trained whole
    with pytest.raises(ValueError, match="nothing is left for it to replace"):
        small_bert(one_layer, extra_attention, partial(lora, layers="last-1", targets="ffn"))
