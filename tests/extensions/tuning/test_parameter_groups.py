"""Parameter groups: nothing lost, nothing twice, the right learning rate and decay for each name.

They change no function: in place of a model's five tests it is who is in which group.
"""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch

from classifier import BertSentimentClassifier
from extensions import PARAMETER_GROUPS
from extensions.specs import from_spec
from extensions.tuning.layerwise import per_layer
from files.errors import UserError
from multitask_classifier import MultitaskBERT
from optimizer import AdamW
from tests.helpers.fixtures_tiny import tiny_bert_dir


@pytest.fixture
def models(tiny_cache):
    """Return frozen and trained models of both scripts, and one whose heads are scalars."""
    def configured(option, **more):
        return SimpleNamespace(hidden_dropout_prob=0.3, num_labels=5, option=option, **more)
    return [cls(configured(option)) for cls in (BertSentimentClassifier, MultitaskBERT)
            for option in ("pretrain", "finetune")] + [
        MultitaskBERT(configured("finetune", pair_encoding="bi", pair_score="cosine"))]


@pytest.mark.parametrize("name", PARAMETER_GROUPS)
def test_groups_hold_each_trainable_parameter_once(name, models):
    for model in models:
        groups = PARAMETER_GROUPS[name](model, 0.02, weight_decay=0.3)
        held = [p for group in groups for p in group["params"]]
        assert len({id(p) for p in held}) == len(held)
        assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
        assert max(group["lr"] for group in groups) == 0.02 and all(group["params"] for group in groups)
        assert max(group["weight_decay"] for group in groups) == 0.3


def test_no_decay_spares_biases_and_norms_by_name(models):
    for model, name in itertools.product(models, ("no-decay", "layerwise")):
        groups = PARAMETER_GROUPS[name](model, 0.02, weight_decay=0.3)
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        for name, p in model.named_parameters():
            if p.requires_grad:
                spared = name.endswith("bias") or "layer_norm" in name or name.endswith(".scale")
                assert decay[id(p)] == (0.0 if spared else 0.3), name
    assert {group["weight_decay"] for group in PARAMETER_GROUPS["flat"](models[1], 0.02, 0.3)} == {0.3}


def test_layerwise_slows_down_from_the_heads_to_the_embeddings(tmp_path):
    bert = tiny_bert_dir(tmp_path, hidden_size=24, num_attention_heads=2, num_hidden_layers=3)
    model = MultitaskBERT(SimpleNamespace(hidden_dropout_prob=0.3, option="finetune", pretrained=str(bert)))
    lr = {id(p): group["lr"] for group in PARAMETER_GROUPS["layerwise"](model, 0.1, 0.0, decay=0.5)
          for p in group["params"]}
    expected = {"_head": 0.1, "pooler_dense": 0.1, "bert_layers.2.": 0.1, "bert_layers.1.": 0.05,
                "bert_layers.0.": 0.025, "_embedding": 0.0125, "embed_layer_norm": 0.0125}
    for name, p in model.named_parameters():
        [rate] = [rate for part, rate in expected.items() if part in name]
        assert lr[id(p)] == pytest.approx(rate), name


def rates_of(groups):
    """Return {id of a parameter: its learning rate}."""
    return {id(p): group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", ["flat", "no-decay", "layerwise"])
def test_the_heads_learn_so_many_times_as_fast(name, models):
    for model in models:
        plain, tenfold = (PARAMETER_GROUPS[name](model, 0.02, 0.3, **head) for head in ({}, {"head": 10.0}))
        before, after = rates_of(plain), rates_of(tenfold)
        for parameter, p in model.named_parameters():
            if p.requires_grad:
                factor = 1 if parameter.startswith("bert.") else 10
                assert after[id(p)] == pytest.approx(factor * before[id(p)]), parameter
        assert len(before) == len(after) == sum(len(group["params"]) for group in tenfold)
        if any(p.requires_grad for p in model.bert.parameters()):
            assert tenfold[0]["lr"] == 0.02  # the one that is logged


def three_layers(tmp_path):
    """Return a model of three layers."""
    bert = tiny_bert_dir(tmp_path, hidden_size=24, num_attention_heads=2, num_hidden_layers=3)
    return MultitaskBERT(SimpleNamespace(hidden_dropout_prob=0.3, option="finetune", pretrained=str(bert)))


@pytest.mark.parametrize("spec, head", [("per-layer:rates=1e-6+2e-6+3e-6+lr", 0.1),
                                        ("per-layer:rates=1e-6+2e-6+3e-6+lr+0.5", 0.5)])
def test_a_rate_for_each_layer_from_the_embeddings_up(spec, head, tmp_path):
    model = three_layers(tmp_path)
    groups = from_spec(spec, PARAMETER_GROUPS)(model, 0.1, weight_decay=0.3)
    lr, decay = rates_of(groups), {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(lr) == len(list(model.parameters())) == sum(len(group["params"]) for group in groups)
    expected = {"_head": head, "pooler_dense": 0.1, "bert_layers.2.": 0.1, "bert_layers.1.": 3e-6,
                "bert_layers.0.": 2e-6, "_embedding": 1e-6, "embed_layer_norm": 1e-6}
    for name, p in model.named_parameters():
        [rate] = [rate for part, rate in expected.items() if part in name]
        assert lr[id(p)] == rate and decay[id(p)] == (0.3 if p.ndim > 1 else 0.0), name


@pytest.mark.parametrize("rates", ["1e-6+2e-6", "1e-6+2e-6+3e-6+4e-6+5e-6+6e-6"])
def test_another_number_of_rates_is_named(rates, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"per-layer:rates={rates}: give 4 rates of at least 0")):
        per_layer(three_layers(tmp_path), 0.1, rates=rates)


@pytest.mark.parametrize("spec, message", [
    ("per-layer:rates=1+2+3+inf", "rates must be numbers of at least 0, or lr, joined by +, not 'inf'"),
    ("per-layer:rates=1+2+3+-4", "not '-4'"), ("per-layer:rates=1+2+3+top", "not 'top'"),
    ("layerwise:decay=0", "decay must be above 0 and at most 1"), ("layerwise:decay=1.1", "above 0 and at most 1")])
def test_wrong_rates_are_named_without_a_model(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_spec(spec, PARAMETER_GROUPS)


def test_a_rate_of_0_leaves_a_layer_as_it_is(tmp_path):
    model = three_layers(tmp_path)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AdamW(per_layer(model, 0.1, rates="0+0+0+lr"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == {name for name in before if not any(
        part in name for part in ("_embedding", "embed_layer_norm", "bert_layers.0.", "bert_layers.1."))}
