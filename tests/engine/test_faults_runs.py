"""What a full disk, a failing device or a missing permission leaves of checkpoints, metrics and the folder of a run."""

import argparse
import errno
import json
import os
from types import SimpleNamespace

import pytest
import torch

from bert import BertModel
from config import BertConfig
from engine.checkpoint import load_checkpoint, save_model
from engine.run_folder import Run
from optimizer import AdamW
from tests.helpers.faults import KINDS, STEPS, contents, failing, refused


@pytest.fixture
def model():
    """A small BERT with the attribute `bert` that checkpoints ask for, and its optimizer after a step."""
    bert = BertModel(BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=3,
                                intermediate_size=20))
    model = torch.nn.ModuleDict({"bert": bert})
    model.bert = bert
    optimizer = AdamW(model.parameters(), lr=1e-2)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    return model, optimizer, argparse.Namespace(lr=1e-2), SimpleNamespace(option="finetune")


@pytest.mark.parametrize("name, what, call, step", [
    (name, *step) for name in ("best.pt", "best.json") for step in STEPS if (name, step[1]) != ("best.json", 2)])
def test_a_checkpoint(name, what, call, step, model, tmp_path, capsys, record):
    save_model(*model, tmp_path / "best.pt")
    before = contents(tmp_path)
    model[1].step()
    for number in KINDS:
        with failing(what, number, f"*{name}*", call):
            said = refused(lambda: save_model(*model, tmp_path / "best.pt"), capsys)
        assert "cannot be written" in said and name.partition(".")[0] in said and os.strerror(number) in said
        after = contents(tmp_path)
        assert after[name] == before[name] and after.keys() == before.keys()
        load_checkpoint(tmp_path / "best.pt")
    if name == "best.pt":
        record("Output files", f"{step} fails as a checkpoint is written: EACCES, ENOSPC or EIO",
               "the checkpoint of before, nothing beside it, and an error that names it", said, folder=tmp_path)


def test_metrics_keep_whole_lines(tmp_path, capsys, record):
    run = Run(str(tmp_path / "one"))
    os.mkdir(run.folder)
    run.log(kind="train", step=1)
    for number in KINDS:
        for what in ("open", "write"):
            with failing(what, number, "*metrics.jsonl"):
                said = refused(lambda: run.log(kind="train", step=2), capsys)
            assert "metrics.jsonl" in said and os.strerror(number) in said
            with open(run.metrics, encoding="utf-8") as file:
                assert [json.loads(line)["step"] for line in file] == [1]
    record("Output files", "the disk is full as a line of metrics.jsonl is written",
           "the lines of before, whole, and an error that names the file", said, folder=tmp_path)
    with failing("fsync", errno.EIO, "*metrics.jsonl"):
        assert "metrics.jsonl" in refused(run.length, capsys)


def test_a_run_that_cannot_move_aside(tmp_path, capsys, record):
    run = Run(str(tmp_path / "one"))
    os.mkdir(run.folder)
    (tmp_path / "one" / "last.pt").write_bytes(b"unfinished")
    before = contents(tmp_path)
    with failing("replace", errno.EACCES, "*/one*"):
        said = refused(lambda: run.begin(argparse.Namespace(), torch.device("cpu")), capsys)
    assert run.folder in said and contents(tmp_path) == before
    record("Output files", "the folder of an unfinished run cannot be renamed", "it stays, and an error names it", said,
           folder=tmp_path)
