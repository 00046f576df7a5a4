"""A config.json with absurd, impossible or damaged settings is refused before anything is allocated."""

import json

import pytest

from bert import BertModel
from config import MAX_SIZES, BertConfig
from files.errors import UserError
from tests.helpers.hostile import refused

SMALL = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
         "max_position_embeddings": 16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the weights of a small model; tests write its config.json."""
    folder = tmp_path_factory.mktemp("saved")
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    return folder


VALUES = {  # what a table row says -> the settings, and what the message says of them
    "vocab_size 10^12": ({"vocab_size": 10**12}, "vocab_size is 1000000000000 and must be an integer from 1 to 10"),
    "hidden_size 10^9": ({"hidden_size": 10**9}, "hidden_size is 1000000000 and must be an integer"),
    "num_hidden_layers 10^9": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000 and"),
    "max_position_embeddings 10^12": ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000"),
    "a vocab_size of 4,000 digits": ({"vocab_size": int("9" * 4000)}, "vocab_size is 999"),
    "every size at its largest": (
        MAX_SIZES, "are 3,124 numbers, and a model with this config.json has 49,111,380,300,000: they do not fit"),
    "200 wide layers for weights that have 2 narrow ones": (
        {"num_hidden_layers": 200, "hidden_size": 1200, "intermediate_size": 3000},
        "are 3,124 numbers, and a model with this config.json has 2,596,261,200"),
    "vocab_size -1": ({"vocab_size": -1}, "vocab_size is -1"),
    "num_hidden_layers 0": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "hidden_size NaN": ({"hidden_size": float("nan")}, "hidden_size is nan"),
    "hidden_size true": ({"hidden_size": True}, "hidden_size is True and must be an integer"),
    "hidden_size as text": ({"hidden_size": "12"}, "hidden_size is '12'"),
    "hidden_size null": ({"hidden_size": None}, "hidden_size is None"),
    "hidden_size 12.5": ({"hidden_size": 12.5}, "hidden_size is 12.5"),
    "intermediate_size a nested list": ({"intermediate_size": [[[20]]]}, "intermediate_size is [[["),
    "hidden_dropout_prob 1.5": ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5 and must be a number from 0"),
    "attention_probs_dropout_prob -0.1": ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is"),
    "hidden_dropout_prob NaN": ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob is nan"),
    "initializer_range infinite": ({"initializer_range": float("inf")}, "initializer_range is inf"),
    "layer_norm_eps negative": ({"layer_norm_eps": -1e-12}, "layer_norm_eps is -1e-12"),
    "pad_token_id beyond the vocabulary": ({"pad_token_id": 30}, "pad_token_id is 30 and must be an integer from 0 to"),
    "hidden_size not divisible by the heads": (
        {"num_attention_heads": 5}, "hidden_size is 12 and must be a multiple of num_attention_heads, 5"),
    "an unknown hidden_act": ({"hidden_act": "relu"}, "hidden_act is 'relu' and must be 'gelu'"),
    "an unknown position_embedding_type": (
        {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key' and must be"),
    "gradient_checkpointing as text": ({"gradient_checkpointing": "no"}, "gradient_checkpointing is 'no'"),
    "a setting with a method's name": ({"to_dict": 1}, "'to_dict' is no name for a setting"),
    "a setting called __class__": ({"__class__": "int"}, "'__class__' is no name for a setting"),
    "a setting called self": ({"self": 1}, "'self' is no name for a setting"),
}


@pytest.mark.parametrize("given", VALUES)
def test_values(given, saved, record):
    change, message = VALUES[given]
    (saved / "config.json").write_text(json.dumps({**SMALL, **change}))
    assert message in refused("model", saved, record, f"config.json with {given}",
                              "one error with the setting, its value and what is valid, before memory is taken", saved)


NESTED = {
    "lists nested 100,000 deep": (b'{"vocab_size": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "objects nested 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "a key that stands twice": (b'{"vocab_size": 30, "vocab_size": 31}', "the key 'vocab_size' stands there twice"),
    "a list in place of an object": (b"[30]", "must hold one JSON object, not list"),
    "half of its text": (b'{"vocab_size": 3', "is not JSON (Expecting ',' delimiter: line 1 column 17"),
    "bytes that are no UTF-8": (b'{"a": "\xff"}', "is not JSON ('utf-8' codec can't decode byte 0xff in position 7"),
    "a number of a million digits": (b'{"vocab_size": ' + b"9" * 10**6 + b"}", "is not JSON (Exceeds the limit"),
    "nothing in it": (b"", "is not JSON (Expecting value: line 1 column 1"),
}


@pytest.mark.parametrize("given", NESTED)
def test_damaged_files(given, saved, record):
    content, message = NESTED[given]
    (saved / "config.json").write_bytes(content)
    assert message in refused("model", saved, record, f"config.json: {given}",
                              "one error that names the file and the place", saved)


def test_a_gigabyte_and_a_folder(saved, record, tmp_path):
    with open(saved / "config.json", "wb") as file:
        file.truncate(2**30)
    assert "has more than 4,194,304 bytes" in refused(
        "model", saved, record, "config.json of 1 GB", "refused unread, its size named", saved)
    (tmp_path / "config.json").mkdir()
    assert "holds no config.json" in refused(
        "model", tmp_path, record, "a folder called config.json", "no such file", tmp_path)


def test_what_is_odd_but_legal_loads(saved):
    odd = {**SMALL, "pad_token_id": None, "hidden_dropout_prob": 0, "layer_norm_eps": 0.1, "note": [1], "label2id": {}}
    (saved / "config.json").write_text("\ufeff" + json.dumps(odd), encoding="utf-8")
    assert BertModel.from_pretrained(saved).config.note == [1]
    assert BertConfig(vocab_size=-1, hidden_act="relu").vocab_size == -1  # nobody builds anything of it
    with pytest.raises(UserError, match="^config: hidden_act is 'relu'"):
        BertModel.from_pretrained("", config=BertConfig(hidden_act="relu"), state_dict={})
    with pytest.raises(UserError, match="hidden_dropout_prob is 2"):
        BertModel.from_pretrained(saved, hidden_dropout_prob=2)


def test_the_count_of_parameters_is_the_models():
    for change in ({}, {"num_hidden_layers": 3, "intermediate_size": 7, "type_vocab_size": 1}):
        config = BertConfig(**{**SMALL, **change})
        assert config.num_parameters() == sum(p.numel() for p in BertModel(config).parameters())
