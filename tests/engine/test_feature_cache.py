"""The cache of frozen features: equal to computing them, kept apart by all they depend on, never trusted unchecked."""

import os
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save as safetensors_save

import classifier
import multitask_classifier
from bert import BertModel, BertSelfAttention
from classifier import BertSentimentClassifier
from datasets import SentenceClassificationDataset, SentencePairDataset
from engine import feature_cache
from engine.batching import bucket_loader
from engine.feature_cache import FrozenFeatures, are_fixed, cache_path, features_of, frozen_loader
from engine.step import to_device
from evaluation import collect
from multitask_classifier import MultitaskBERT
from tests.helpers.fixtures_tiny import WORDS

CPU = torch.device("cpu")
ENCODINGS = [("sst", "cross"), ("para", "cross"), ("para", "bi"), ("sts", "bi")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the cache's folder, in which any number of rows is kept."""
    monkeypatch.setattr(feature_cache, "FEATURE_CACHE_TOKENS", 1)
    monkeypatch.setattr(feature_cache, "default_cache_dir", lambda: tmp_path)
    monkeypatch.delenv("MINBERT_FEATURE_CACHE", raising=False)
    return tmp_path / "features"


@pytest.fixture
def passes(monkeypatch):
    """Return the list of the numbers of rows that went through an encoder."""
    rows, forward = [], BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda self, ids, *args, **options: (
        rows.append(len(ids)), forward(self, ids, *args, **options))[1])
    return rows


def data_of(task, bert_dir, rows=6, **more):
    words, args = WORDS.split(), SimpleNamespace(pretrained=bert_dir, **more)
    texts = [" ".join(words[i : i + 2 + i % 4]) for i in range(rows)]
    if task == "sst":
        return SentenceClassificationDataset([(text, i % 5, f"id{i}") for i, text in enumerate(texts)], args)
    return SentencePairDataset([(text, texts[-1 - i], i % 2, f"id{i}") for i, text in enumerate(texts)], args,
                               isRegression=task == "sts")


def a_model(bert_dir, encoding="cross", seed=0, **more):
    torch.manual_seed(seed)
    return MultitaskBERT(SimpleNamespace(**{
        "pretrained": bert_dir, "option": "pretrain", "hidden_dropout_prob": 0.1, "pooling": "mean",
        "pair_encoding": encoding, **more}))


def sentiment_model(bert_dir):
    torch.manual_seed(0)
    return BertSentimentClassifier(SimpleNamespace(num_labels=5, hidden_dropout_prob=0.3, option="pretrain",
                                                   pretrained=bert_dir))


@pytest.mark.parametrize("task, encoding", ENCODINGS)
def test_features_are_the_models_and_the_second_time_from_the_file(task, encoding, bert_dir, folder, passes):
    model, data = a_model(bert_dir, encoding), data_of(task, bert_dir)
    first = FrozenFeatures(data, model, CPU, task, collect)
    assert passes and not first.from_cache and len(list(folder.iterdir())) == 1
    passes.clear()
    second = FrozenFeatures(data, model.train(), CPU, task, collect)
    assert not passes and second.from_cache and second.features.equal(first.features)
    model.eval()
    for i, row in enumerate(data.dataset):
        batch = second.collate_fn([i])
        with torch.no_grad():
            alone = model.encode(task, data.collate_fn([row]))
        assert len(features_of(batch)) == len(alone) == (1 if encoding == "cross" else 2)
        for kept, expected in zip(features_of(batch), alone, strict=True):
            torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)
        assert batch["labels"].equal(data.labels([row])) and batch["sent_ids"] == [row[-1]]
        assert ("sents" in batch) == (task == "sst")


def test_both_scripts_models_have_features_of_their_own(bert_dir, folder, passes):
    data = data_of("sst", bert_dir)
    features = [FrozenFeatures(data, model, CPU, task, collect) for model, task in (
        (sentiment_model(bert_dir), "sst"), (a_model(bert_dir), "sst"), (a_model(bert_dir, pooling="pooler"), "sst"))]
    assert not any(each.from_cache for each in features) and len(list(folder.iterdir())) == 3
    torch.testing.assert_close(features[0].features, features[2].features)
    assert not torch.allclose(features[0].features, features[1].features, atol=1e-3)


class Biased(BertSelfAttention):
    """An attention of another technique, with a number of its own and no parameter."""

    slope = 1.0


def test_the_name_tells_apart_all_that_features_depend_on(bert_dir, folder, monkeypatch):
    def name(task="para", encoding="cross", change=lambda model: None, data=None, device="cpu", **more):
        model = a_model(bert_dir, encoding, **more)
        change(model)
        return cache_path(data or data_of(task, bert_dir), model, device, task, encoding)

    def attention(model):
        return model.bert.bert_layers[0].self_attention

    def moved(model):
        model.bert.bert_layers[0].interm_dense.bias.data[3] += 1e-6

    others = [
        name(encoding="bi"), name(change=moved), name(pooling="max"),
        name(change=lambda model: setattr(attention(model), "__class__", Biased)),
        name(change=lambda model: setattr(attention(model), "slopes", 2.0)),
        name(change=lambda model: setattr(model.bert.bert_layers[0], "interm_af", torch.relu)),
        name(change=lambda model: setattr(model.bert.embed_layer_norm, "eps", 1e-3)),
        name(change=lambda model: model.bert.register_buffer("extra", torch.ones(1), persistent=False)),
        name(change=lambda model: setattr(model.bert, "takes_task", True)),
        name(data=data_of("para", bert_dir, rows=5)), name(data=data_of("para", bert_dir, max_length=6)),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        others.append(name())
    model, data = a_model(bert_dir), data_of("para", bert_dir)
    for module, attribute, value in ((feature_cache, "FEATURE_CACHE_FORMAT", 2), (torch, "__version__", "9.0"),
                                     (feature_cache, "source_digest", lambda: b"another")):
        with monkeypatch.context() as patch:
            patch.setattr(module, attribute, value)
            others.append(cache_path(data, model, CPU, "para", "cross"))
    assert name("sts", "bi") == name("para", "bi")  # labels and task make no difference to features
    assert len({*others, name()}) == len(others) + 1 and {path.parent for path in others} == {folder}
    # What is not of the encoder, or is not used in evaluation, makes no difference.
    assert name() == name(seed=1) == name(hidden_dropout_prob=0.5) == name(encoder_dropout_prob=0.5)
    assert name() == name(change=lambda model: model.train()) == name(heads="mlp:hidden=2")


DAMAGE = {
    "truncated": lambda data: data[:-40], "empty": lambda data: b"", "no such file": lambda data: b"PK\x03\x04 junk",
    "a bit": lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:], "longer": lambda data: data + b"\0" * 8,
    "its type": lambda data: data.replace(b'"F32"', b'"I32"'),
    "its shape": lambda data: data.replace(b"[6,24]", b"[4,36]"),
    "another's": None, "not finite": None, "a folder": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_right_is_computed_anew(damage, bert_dir, folder, passes, capsys):
    model, data = a_model(bert_dir), data_of("sst", bert_dir)
    expected = FrozenFeatures(data, model, CPU, "sst", collect).features
    [path] = folder.iterdir()
    if damage == "another's":
        FrozenFeatures(data, a_model(bert_dir, pooling="max"), CPU, "sst", collect)
        [other] = [entry for entry in folder.iterdir() if entry != path]
        shutil.copy(other, path)
    elif damage == "not finite":
        features = expected.numpy().copy()
        features[1, 1] = np.nan
        metadata = {"key": path.stem, "sha256": feature_cache.token_digest(features)}
        path.write_bytes(safetensors_save({"features": features}, metadata))
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    passes.clear()
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if damage == "a folder" else "error")
        again = FrozenFeatures(data, model, CPU, "sst", collect)
    assert passes and again.features.equal(expected) and not again.from_cache
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"note: {path} is damaged or not what its name says")
    if damage != "a folder":
        assert FrozenFeatures(data, model, CPU, "sst", collect).from_cache


def test_off_too_small_and_a_disk_that_cannot_be_written(bert_dir, folder, monkeypatch):
    model, data = a_model(bert_dir), data_of("sst", bert_dir)
    with monkeypatch.context() as patch:
        patch.setenv("MINBERT_FEATURE_CACHE", "0")
        FrozenFeatures(data, model, CPU, "sst", collect)
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "FEATURE_CACHE_TOKENS", 10**6)
        FrozenFeatures(data, model, CPU, "sst", collect)
    assert not folder.exists()
    folder.write_text("in the way")
    with pytest.warns(UserWarning, match="features are not kept for the next run"):
        assert len(FrozenFeatures(data, model, CPU, "sst", collect)) == 6


def test_the_folder_keeps_what_was_used_last(bert_dir, folder, monkeypatch):
    model = a_model(bert_dir)
    sets = [data_of("sst", bert_dir, rows) for rows in (4, 5, 6)]
    for data in sets[:2]:
        FrozenFeatures(data, model, CPU, "sst", collect)
    for entry in folder.iterdir():
        os.utime(entry, (1, 1))  # a file system may tell no times apart that are as near as these
    size = max(entry.stat().st_size for entry in folder.iterdir())
    assert FrozenFeatures(sets[0], model, CPU, "sst", collect).from_cache  # and so used after sets[1]
    monkeypatch.setattr(feature_cache, "FEATURE_CACHE_BYTES", int(2.5 * size))
    FrozenFeatures(sets[2], model, CPU, "sst", collect)
    assert [FrozenFeatures(data, model, CPU, "sst", collect).from_cache for data in (sets[2], sets[0], sets[1])] == [
        True, True, False]


def test_what_is_not_fixed_is_not_kept(bert_dir):
    def fixed(loss="ce", penalty=None, change=lambda model: None, **more):
        model = a_model(bert_dir, **more)
        change(model)
        return are_fixed(model, {"sst": [loss]}, penalty)

    assert fixed() and fixed(penalty=["rdrop:weight=0.5"]) and fixed("ordinal") and are_fixed(
        sentiment_model(bert_dir))
    assert not fixed(option="finetune") and not fixed(pooling="attention") and not fixed(penalty=["smart"])
    assert not fixed("simcse") and not fixed(change=lambda model: model.bert.pooler_dense.requires_grad_(True))
    assert not fixed(pair_order="both")
    assert not fixed(option="finetune", change=lambda model: model.bert.requires_grad_(False))  # dropout is on


@pytest.mark.parametrize("task, encoding", ENCODINGS)
def test_a_loader_of_features_serves_a_head(task, encoding, bert_dir, folder):
    model, data = a_model(bert_dir, encoding, hidden_dropout_prob=0.0), data_of(task, bert_dir)
    loader = bucket_loader(data, 4, shuffle=True, seed=3, pair_encoding=encoding)
    frozen = frozen_loader(loader, model, CPU, task, collect)
    seen = []
    for batch in frozen:
        seen += batch["sent_ids"]
        logits = model.score(task, features_of(to_device(batch, CPU)))
        rows = [data.dataset[int(name[2:])] for name in batch["sent_ids"]]
        torch.testing.assert_close(logits, model.eval().logits(task, data.collate_fn(rows)), atol=1e-5,
                                   rtol=1e-4)
    assert sorted(seen) == [row[-1] for row in data.dataset] and len(frozen) == 2


def test_the_script_reads_its_second_run_from_the_cache(course_folder, folder, passes):
    arguments = SimpleNamespace(
        train="data/ids-sst-train.csv", dev="data/ids-sst-dev.csv", option="pretrain", epochs=2, batch_size=8,
        filepath="model.pt", precision="fp32")
    scores, weights = [], []
    for rows in (8, 0):  # the tiny files for training and dev have the same texts
        passes.clear()
        scores.append(classifier.train(arguments))
        weights.append(torch.load("model.pt", weights_only=True)["model"]["classifier.weight"])
        assert sum(passes) == rows
    assert scores[0] == scores[1] and weights[0].equal(weights[1])


@pytest.mark.parametrize("script", [classifier, multitask_classifier], ids=lambda script: script.__name__)
def test_predictions_with_a_frozen_encoder_read_no_text_that_training_has_read(script, course_folder, folder, passes,
                                                                               monkeypatch):
    only = ["--dataset", "sst"] if script is classifier else ["--tasks", "sst", "sts"]
    flags = [script.__name__, *only, "--option", "pretrain", "--epochs", "1", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", flags)
    monkeypatch.setenv("MINBERT_FEATURE_CACHE", "0")
    script.main()
    expected = {path: path.read_bytes() for path in sorted(Path("predictions").glob("*.csv"))}
    assert expected
    monkeypatch.delenv("MINBERT_FEATURE_CACHE")
    fitted = []
    fit = script.fit
    monkeypatch.setattr(script, "fit", lambda *args: (fit(*args), fitted.append(sum(passes)))[0])
    for first in (True, False):
        passes.clear()
        script.main()
        assert sum(passes) == fitted[-1] and (fitted[-1] > 0) == first  # the tiny files have the same texts
        assert {path: path.read_bytes() for path in expected} == expected
