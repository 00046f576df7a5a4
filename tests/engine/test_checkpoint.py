"""Checkpoints hold tensors and plain values, rebuild the model by themselves, and are written whole or not at all."""

import argparse
import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import run_folder
from engine.checkpoint import load_checkpoint, save_model
from engine.model_config import load_encoder, read_config
from engine.run_folder import plain
from files.errors import UserError
from multitask_classifier import MultitaskBERT
from optimizer import AdamW
from tests.helpers.fixtures_tiny import tiny_bert_dir
from tests.helpers.hostile import save_hostile

IDS, MASK = torch.tensor([[101, 980, 990, 102], [101, 985, 102, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture
def trained(tmp_path):
    """Return (model, optimizer, args, config) after one step; the pretrained weights lie in tmp_path/bert."""
    pretrained = tiny_bert_dir(tmp_path / "bert", hidden_size=24, num_attention_heads=2)
    config = SimpleNamespace(hidden_dropout_prob=0.3, encoder_dropout_prob=0.2, option="finetune",
                             pretrained=str(pretrained), pooling={"sst": "mean", "para": "cls", "sts": "mean"})
    torch.manual_seed(0)
    model = MultitaskBERT(config)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    model.predict_sentiment(IDS, MASK).sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=1e-2, tasks=["sst"], use_gpu=False, filepath=None, data_dir=tmp_path)
    return model.eval(), optimizer, args, config


def test_a_round_trip_needs_no_pretrained_weights(trained, tmp_path, capsys):
    model, optimizer, args, config = trained
    path = tmp_path / "new" / "best.pt"
    save_model(model, optimizer, args, config, path)
    assert capsys.readouterr().out == f"save the model to {path}\n"
    shutil.rmtree(tmp_path / "bert")
    saved = load_checkpoint(path)
    again = MultitaskBERT(saved["model_config"])
    again.load_state_dict(saved["model"])
    again.eval()
    assert torch.equal(model.predict_sentiment(IDS, MASK), again.predict_sentiment(IDS, MASK))
    assert torch.equal(model.predict_similarity(IDS, MASK, IDS, MASK), again.predict_similarity(IDS, MASK, IDS, MASK))
    assert again.bert.embed_dropout.p == again.bert.bert_layers[0].self_attention.dropout.p == 0.2
    assert again.sentiment_head[0].p == 0.3 and repr(again.pooling) == repr(model.pooling)

    other = AdamW(again.parameters(), lr=1.0)
    other.load_state_dict(saved["optim"])
    for trained_model, its_optimizer in ((model, optimizer), (again, other)):
        trained_model.zero_grad()
        trained_model.predict_sentiment(IDS, MASK).sum().backward()
        its_optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert saved["args"] == {"lr": 1e-2, "tasks": ["sst"], "use_gpu": False, "filepath": None,
                             "data_dir": str(tmp_path)}


def test_the_random_states_can_be_restored(trained, tmp_path):
    save_model(*trained, tmp_path / "best.pt")
    expected = random.random(), np.random.rand(), torch.rand(3).tolist()
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    version, state, gauss = saved["system_rng"]
    random.setstate((version, tuple(state), gauss))
    name, keys, *rest = saved["numpy_rng"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(saved["torch_rng"])
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected


def test_a_note_beside_it_says_what_made_it(trained, tmp_path):
    save_model(*trained, tmp_path / "best.v1.pt")
    note = json.loads((tmp_path / "best.v1.json").read_text())
    assert note["args"]["lr"] == 1e-2 and note["torch"] == torch.__version__ and note["python"].startswith("3.")
    assert note["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", note["commit"])


def test_training_goes_on_where_git_is_not_installed(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run_folder.environment.cache_clear()
    save_model(*trained, tmp_path / "best.pt")
    assert json.loads((tmp_path / "best.json").read_text())["commit"] is None
    run_folder.environment.cache_clear()


def test_plain_values():
    inner, ids = argparse.Namespace(path=Path("x/y"), ok=True), torch.ones(1)
    assert plain(SimpleNamespace(inner=inner, pair=(1, 2.5), seen={3: None}, ids=ids)) == {
        "inner": {"path": "x/y", "ok": True}, "pair": [1, 2.5], "seen": {"3": None}, "ids": ids}
    for value, expected in ((np.float64(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True)):
        assert plain([value]) == [expected] and type(plain(value)) is type(expected)


def test_an_interrupted_save_leaves_the_old_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "runs" / "best.pt"
    save_model(*trained, path)
    before = path.read_bytes()

    def half(contents, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_model(*trained, path)
    assert path.read_bytes() == before and {p.name for p in path.parent.iterdir()} == {"best.pt", "best.json"}


def test_a_hostile_or_damaged_file_is_refused(tmp_path):
    path, touched = tmp_path / "best.pt", tmp_path / "touched"
    save_hostile(path, touched, key="args")
    for content in (path.read_bytes(), b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="best.pt is not a checkpoint of this project") as error:
            load_checkpoint(path)
        assert "weights_only" not in str(error.value)  # torch's own message advises to turn the check off
    assert not touched.exists()
    for content in ({"model": {}}, [1]):
        torch.save(content, path)
        with pytest.raises(UserError, match="best.pt is not a checkpoint of this project"):
            load_checkpoint(path)
    with pytest.raises(UserError, match="no checkpoint .*nowhere.pt; train first"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_options_of_other_editions_and_frozen_encoders(tmp_path):
    assert read_config({}).option == "finetune" and read_config(SimpleNamespace()).pretrained == "bert-base-uncased"
    assert read_config({"fine_tune_mode": "last-linear-layer"}).option == "pretrain"
    assert read_config({"fine_tune_mode": "full-model"}, max_length=9).max_length == 9
    folder = tiny_bert_dir(tmp_path / "bert", hidden_size=24, num_attention_heads=2)
    for option, trainable in (("pretrain", False), ("finetune", True)):
        bert = load_encoder(read_config({"option": option, "pretrained": str(folder)}))
        assert {p.requires_grad for p in bert.parameters()} == {trainable}
