"""A best.pt or last.pt with absurd, malformed or missing parts ends in one message, before a model is built of it."""

import argparse
import copy
from types import SimpleNamespace

import pytest
import torch

from classifier import BertSentimentClassifier
from engine.batching import TRUNCATIONS
from engine.checkpoint import load_checkpoint, restoring, save_model
from engine.model_config import STORED_CHOICES
from files.errors import UserError
from multitask_classifier import MultitaskBERT
from optimizer import AdamW
from tasks import COURSE_TASKS, TASKS
from tests.helpers.fixtures_tiny import tiny_bert_dir
from tests.helpers.hostile import Call, refused

EXPECTED = "one error that names the file and what is wrong in it"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What a checkpoint of the multitask model holds."""
    folder = tmp_path_factory.mktemp("bert")
    config = SimpleNamespace(hidden_dropout_prob=0.3, option="finetune", num_labels={},
                             pooling=dict.fromkeys(COURSE_TASKS, "cls"),
                             pretrained=str(tiny_bert_dir(folder, hidden_size=24, num_attention_heads=2)))
    model = MultitaskBERT(config)
    args = argparse.Namespace(tasks=["sst"], pretrained="minilm", max_length=None, truncation="head")
    save_model(model, AdamW(model.parameters()), args, config, folder / "best.pt")
    return load_checkpoint(folder / "best.pt")


def put(*keys, value):
    """Return what sets saved[key][key]... to a value."""
    def change(saved):
        for key in keys[:-1]:
            saved = saved[key]
        saved[keys[-1]] = value
    return change


BERT = ("model_config", "bert_config")
CHANGES = {  # what a table row says -> (what changes the checkpoint, what the message says)
    "no model": (lambda saved: saved.pop("model"), "is not a checkpoint of this project"),
    "no model_config": (lambda saved: saved.pop("model_config"), "is not a checkpoint of this project"),
    "a list for model_config": (put("model_config", value=[1, 2]), "is not a checkpoint of this project"),
    "text for args": (put("args", value="lr=1"), "is not a checkpoint of this project"),
    "an unknown pooling": (put("model_config", "pooling", value="sum"), "pooling is sum: no 'sum'; choose one of"),
    "an unknown pooling of one task": (put("model_config", "pooling", "sst", value="sum"), "pooling is sum: no 'sum'"),
    "an unknown option": (put("model_config", "option", value="train"), "option is 'train' and must be 'pretrain' or"),
    "an unknown pair_encoding": (put("model_config", "pair_encoding", value=[["x"]]), "pair_encoding is ['x']"),
    "an unknown fine_tune_mode": (put("model_config", "fine_tune_mode", value="all"), "fine_tune_mode is 'all'"),
    "hidden_dropout_prob NaN": (
        put("model_config", "hidden_dropout_prob", value=torch.nan), "hidden_dropout_prob is nan and must be a number"),
    "encoder_dropout_prob 2": (put("model_config", "encoder_dropout_prob", value=2), "encoder_dropout_prob is 2 and"),
    "max_length as text": (put("args", "max_length", value="long"), "max_length is 'long' and must be an integer"),
    "num_labels 10^12": (put("model_config", "num_labels", value=10**12), "num_labels is 1000000000000 and must"),
    "an unknown task": (put("args", "tasks", value=["nli"]), "tasks is 'nli' and must be 'sst' or 'para' or 'sts'"),
    "a list for pretrained": (put("args", "pretrained", value=[1]), "pretrained is list and must be the name"),
    "text for bert_config": (put(*BERT, value="bert"), "bert_config is str and must be a dict"),
    "bert_config: vocab_size 10^12": (put(*BERT, "vocab_size", value=10**12), "vocab_size is 1000000000000"),
    "bert_config: hidden_size NaN": (put(*BERT, "hidden_size", value=torch.nan), "bert_config: hidden_size is nan"),
    "bert_config: 5 heads": (put(*BERT, "num_attention_heads", value=5), "hidden_size is 24 and must be a multiple of"),
    "bert_config: an unknown hidden_act": (put(*BERT, "hidden_act", value="relu"), "bert_config: hidden_act is 'relu'"),
    "bert_config: a method's name": (put(*BERT, "validate", value=1), "bert_config: 'validate' is no name for"),
    "bert_config of a model of 1 GB": (
        put(*BERT, "vocab_size", value=10**7), "is of 240,018,640 weights, and the file holds"),
    "a call of torch.Tensor(2 * 10^8) and a bert_config as large": (
        lambda saved: (put(*BERT, "vocab_size", value=10**6)(saved),
                       saved["model"].update(more=Call(torch.Tensor, 2 * 10**8))), "weights, and the file holds"),
    "text for the weights' tensors": (
        lambda saved: saved.update(model=dict.fromkeys(saved["model"], "x")), "weights, and the file holds 0"),
    "weights that are one number each, repeated": (
        lambda saved: saved.update(model={key: value.flatten()[0].clone().expand(value.shape)
                                          for key, value in saved["model"].items()}), "weights, and the file holds"),
}


@pytest.mark.parametrize("given", CHANGES)
def test_checkpoints(given, saved, tmp_path, record):
    change, message = CHANGES[given]
    change(hostile := copy.deepcopy(saved))
    torch.save(hostile, tmp_path / "best.pt")
    said = refused("checkpoint", tmp_path / "best.pt", record, f"a checkpoint with {given}", EXPECTED, tmp_path)
    assert message in said and "best.pt" in said


WEIGHTS = {
    "a weight missing": (lambda weights: weights.pop("bert.pooler_dense.bias"), "pooler_dense.bias"),
    "a weight of another shape": (
        lambda weights: weights.update({"bert.pooler_dense.bias": torch.zeros(7)}), "size mismatch for bert.pooler"),
    "a weight too many": (lambda weights: weights.update({"bert.more": torch.zeros(7)}), "bert.more"),
    "text for a weight": (lambda weights: weights.update({"bert.pooler_dense.bias": "0"}), "pooler_dense.bias"),
}


@pytest.mark.parametrize("given", WEIGHTS)
def test_weights_that_do_not_fit(given, saved, tmp_path, record):
    change, message = WEIGHTS[given]
    change((hostile := copy.deepcopy(saved))["model"])
    torch.save(hostile, tmp_path / "best.pt")
    with pytest.raises(UserError, match="best.pt does not hold what") as error, restoring(tmp_path / "best.pt"):
        loaded = load_checkpoint(tmp_path / "best.pt")
        MultitaskBERT(loaded["model_config"]).load_state_dict(loaded["model"])
    assert message in str(error.value)
    record("Hostile files", f"a checkpoint with {given}", EXPECTED, error.value, folder=tmp_path)


def test_a_checkpoint_of_another_script(saved, tmp_path):
    torch.save(saved, tmp_path / "best.pt")
    with pytest.raises(UserError, match="best.pt does not hold .*Unexpected key"), restoring(tmp_path / "best.pt"):
        loaded = load_checkpoint(tmp_path / "best.pt")
        BertSentimentClassifier({**loaded["model_config"], "num_labels": 5}).load_state_dict(loaded["model"])


def test_the_choices_are_those_of_the_code(saved, tmp_path):
    torch.save({**saved, "args": {**saved["args"], "tasks": list(TASKS)}}, tmp_path / "best.pt")
    assert load_checkpoint(tmp_path / "best.pt")["args"]["tasks"] == list(TASKS)
    assert STORED_CHOICES["truncation"] == TRUNCATIONS
    model = MultitaskBERT(saved["model_config"])  # what was not changed loads
    model.load_state_dict(saved["model"])
