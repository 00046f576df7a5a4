"""Parameter groups: nothing lost, nothing twice, the right learning rate and decay for each name."""

import itertools
from types import SimpleNamespace

import pytest

from classifier import BertSentimentClassifier
from extensions import PARAMETER_GROUPS
from multitask_classifier import MultitaskBERT
from tests.fixtures_tiny import tiny_bert_dir


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
