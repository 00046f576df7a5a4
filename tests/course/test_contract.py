"""The public contract as tables: names and signatures. Every expected value is typed by hand from the contract."""
import inspect
import random
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

NAMES = {
    "bert": "BertSelfAttention BertLayer BertModel",
    "base_bert": "BertPreTrainedModel",
    "config": "PretrainedConfig BertConfig",
    "tokenizer": "BertTokenizer BasicTokenizer WordpieceTokenizer BatchEncoding",
    "utils": "get_extended_attention_mask get_parameter_dtype cached_path hf_bucket_url get_from_cache is_remote_url "
             "http_get url_to_filename WEIGHTS_NAME CONFIG_NAME",
    "optimizer": "AdamW",
    "classifier": "seed_everything BertSentimentClassifier SentimentDataset SentimentTestDataset load_data model_eval "
                  "model_test_eval save_model train test get_args",
    "multitask_classifier": "BERT_HIDDEN_SIZE N_SENTIMENT_CLASSES MultitaskBERT save_model train_multitask "
                            "test_multitask test_model get_args",
    "datasets": "preprocess_string SentenceClassificationDataset SentenceClassificationTestDataset "
                "SentencePairDataset SentencePairTestDataset load_multitask_data load_multitask_test_data",
    "evaluation": "model_eval_sst model_eval_multitask model_eval_test_multitask test_model_multitask",
}

# What stands before a `/` is passed by position and its name is free; the rest holds with its names and defaults.
# Parameters of our own may follow if they are optional.
SIGNATURES = {
    "bert": {
        "BertSelfAttention": "config",
        "BertSelfAttention.transform": "x, linear_layer",
        "BertSelfAttention.attention": "key, query, value, attention_mask",
        "BertSelfAttention.forward": "hidden_states, attention_mask",
        "BertLayer": "config",
        "BertLayer.add_norm": "input, output, dense_layer, dropout, ln_layer",
        "BertLayer.forward": "hidden_states, attention_mask",
        "BertModel": "config",
        "BertModel.embed": "input_ids",
        "BertModel.encode": "hidden_states, attention_mask",
        "BertModel.forward": "input_ids, attention_mask",
    },
    "config": {
        "BertConfig": "vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, "
                      "intermediate_size=3072, hidden_act='gelu', hidden_dropout_prob=0.1, "
                      "attention_probs_dropout_prob=0.1, max_position_embeddings=512, type_vocab_size=2, "
                      "initializer_range=0.02, layer_norm_eps=1e-12, pad_token_id=0, gradient_checkpointing=False, "
                      "position_embedding_type='absolute', use_cache=True",
        "PretrainedConfig.from_pretrained": "name_or_path, /",
        "PretrainedConfig.from_dict": "config_dict, /",
        "PretrainedConfig.get_config_dict": "name_or_path, /",
        "PretrainedConfig.to_dict": "",
    },
    "base_bert": {
        "BertPreTrainedModel.from_pretrained": "name_or_path, /",
        "BertPreTrainedModel.init_weights": "",
        "BertPreTrainedModel._init_weights": "module, /",
        "BertPreTrainedModel.save_pretrained": "directory, /",
    },
    "tokenizer": {
        "BertTokenizer": "vocab_file, do_lower_case=True",
        "BertTokenizer.from_pretrained": "name_or_path, /",
        "BertTokenizer.__call__": "text, text_pair=None",
    },
    "utils": {"get_extended_attention_mask": "attention_mask, /, dtype"},
    "optimizer": {
        "AdamW": "params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, correct_bias=True",
        "AdamW.step": "closure=None",
    },
    "classifier": {
        "seed_everything": "seed=11711",
        "BertSentimentClassifier": "config",
        "BertSentimentClassifier.forward": "input_ids, attention_mask",
        "SentimentDataset": "dataset, args",
        "SentimentTestDataset": "dataset, args",
        "load_data": "filename, flag='train'",
        "model_eval": "loader, model, device, /",
        "model_test_eval": "loader, model, device, /",
        "save_model": "model, optimizer, args, config, filepath",
        "train": "args",
        "test": "args",
        "get_args": "",
    },
    "multitask_classifier": {
        "MultitaskBERT": "config",
        "MultitaskBERT.forward": "input_ids, attention_mask",
        "MultitaskBERT.predict_sentiment": "input_ids, attention_mask",
        "MultitaskBERT.predict_paraphrase": "ids1, mask1, ids2, mask2, /",
        "MultitaskBERT.predict_similarity": "ids1, mask1, ids2, mask2, /",
        "save_model": "model, optimizer, args, config, filepath",
        "train_multitask": "args",
        "test_multitask": "args",
        "test_model": "args",
        "get_args": "",
    },
    "datasets": {
        "preprocess_string": "s, /",
        "SentenceClassificationDataset": "dataset, args",
        "SentenceClassificationTestDataset": "dataset, args",
        "SentencePairDataset": "dataset, args, isRegression=False",
        "SentencePairTestDataset": "dataset, args",
        "load_multitask_data": "sst, para, sts, /, split='train'",
    },
    "evaluation": {
        "model_eval_sst": "loader, model, device, /",
        "model_eval_multitask": "sst_loader, para_loader, sts_loader, model, device, /",
        "model_eval_test_multitask": "sst_loader, para_loader, sts_loader, model, device, /",
        "test_model_multitask": "args, model, device",
    },
}

FROM_PRETRAINED_KEYWORDS = ("config state_dict cache_dir force_download resume_download proxies output_loading_info "
                            "local_files_only use_auth_token revision mirror")

# What bert-base-uncased gives: pooler_output[0, :8], pooler_output[1, :8], last_hidden_state[1, 7, :8].
REFERENCE_VALUES = (
    "-0.906153 -0.311153 -0.621654 0.774093 0.289866 -0.190243 0.924708 0.181801 "
    "-0.804259 -0.286005 -0.282890 0.491087 0.170097 -0.147883 0.633062 0.070926 "
    "0.645269 -0.115473 -0.436594 0.339301 -0.399916 -0.651165 0.698182 -0.982277")
REFERENCE_IDS = "[[101, 7592, 2088, 102, 0, 0, 0, 0], [101, 7592, 15756, 2897, 2005, 17953, 2361, 102]]"


def parameters_of(function):
    """Return the parameters of `function` without self."""
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


@pytest.mark.parametrize("module", NAMES)
def test_module_has_every_name(module):
    assert [name for name in NAMES[module].split() if not hasattr(import_module(module), name)] == []


@pytest.mark.parametrize("module, name", [(module, name) for module in SIGNATURES for name in SIGNATURES[module]])
def test_signature(module, name):
    function = import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    declared = parameters_of(eval(f"lambda {SIGNATURES[module][name]}: None"))
    actual = parameters_of(function)

    assert len(actual) >= len(declared)
    for theirs, ours in zip(declared, actual):
        assert theirs.kind == theirs.POSITIONAL_ONLY or theirs.name == ours.name
        assert ours.default == theirs.default
    for ours in actual[len(declared):]:
        assert ours.default is not ours.empty or ours.kind in (ours.VAR_POSITIONAL, ours.VAR_KEYWORD), ours


def test_from_pretrained_names_its_keywords_or_takes_any():
    parameters = parameters_of(import_module("bert").BertModel.from_pretrained)
    assert any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        assert set(FROM_PRETRAINED_KEYWORDS.split()) <= {p.name for p in parameters}


@pytest.mark.parametrize("name", ["padding", "truncation", "max_length", "return_tensors"])
def test_tokenizer_call_takes(name):
    assert name in inspect.signature(import_module("tokenizer").BertTokenizer.__call__).parameters


def test_constants():
    multitask, utils = import_module("multitask_classifier"), import_module("utils")
    assert (multitask.BERT_HIDDEN_SIZE, multitask.N_SENTIMENT_CLASSES) == (768, 5)
    assert (utils.WEIGHTS_NAME, utils.CONFIG_NAME) == ("pytorch_model.bin", "config.json")


def test_seed_everything_seeds_python_numpy_and_torch():
    seed_everything = import_module("classifier").seed_everything
    drawn = []
    for arguments in ((), (11711,), (1,)):
        seed_everything(*arguments)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[1], drawn[2], strict=True))


def test_sanity_check_holds_the_courses_reference_values():
    source = (ROOT / "sanity_check.py").read_text(encoding="utf-8")
    assert REFERENCE_VALUES in " ".join(re.findall(r"-?\d\.\d{6}\b", source))
    assert REFERENCE_IDS in source


@pytest.mark.parametrize("script, says", [
    ("sanity_check.py", ""), ("optimizer_test.py", ""),
    ("prepare_submit.py", "cs224n_default_final_project_submission.zip"),
])
def test_script_is_there(script, says):
    assert says in (ROOT / script).read_text(encoding="utf-8")
