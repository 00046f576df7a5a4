"""Fuzzed checkpoints and weights: what is damaged or hostile is refused in one line, and what loads is plain."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st

from base_bert import load_tensors
from bert import BertModel
from config import BertConfig
from engine.checkpoint import load_checkpoint, save_model
from files.errors import UserError
from optimizer import AdamW
from tests.fuzz import damaged, fuzz
from tests.fuzz.damage import OPCODES, damaged_header, damaged_zip
from tests.helpers.hostile import memory, reset_peak
from tests.helpers.script_runs import difference

SMALL = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20,
         "max_position_embeddings": 16}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch on pickles, zipfile on repeated names
MIB = 500  # what a loader may add to the memory of the process


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: bytes} of a small checkpoint and of the same weights in both formats."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SMALL))
    model = torch.nn.ModuleDict({"bert": bert})
    model.bert = bert
    optimizer = AdamW(model.parameters(), lr=1e-2)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    save_model(model, optimizer, argparse.Namespace(lr=1e-2, tasks=["sst"]), SimpleNamespace(option="finetune"),
               folder / "best.pt")
    bert.save_pretrained(folder)
    torch.save(bert.state_dict(), folder / "new.bin")
    torch.save(bert.state_dict(), folder / "old.bin", _use_new_zipfile_serialization=False)
    return {name: (folder / name).read_bytes() for name in ("best.pt", "model.safetensors", "new.bin", "old.bin")}


def size_of(value):
    """Return the bytes of the tensors in a nested value; assert that there are but dicts, lists and scalars in it."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        return value.numel() * value.element_size()
    if isinstance(value, (dict, list, tuple)):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return sum(map(size_of, items))
    assert isinstance(value, (bool, int, float, str, bytes, type(None), torch.Size, torch.dtype)), type(value)
    return 0


def examine(name, load, data, strategy, examples, folder, monkeypatch, well_formed):
    """Fuzz `load` with the drawn files; return (examples, how many of them loaded, MiB)."""
    path, before, loaded = folder / name, reset_peak(), []
    path.write_bytes(data)
    original = load(path)
    monkeypatch.chdir(folder)

    def check(content):
        path.write_bytes(content)
        try:
            value = load(path)
        except UserError as error:
            message = str(error)
            assert path.name in message and "weights_only" not in message and "Traceback" not in message
            assert "\n" not in message and len(message) < 1_500
            return
        loaded.append(content)
        if difference(original, value) is not None:
            assert size_of(value) < MIB * 2**20
            well_formed(value)

    n = fuzz(check, examples, strategy)
    mib = max(0, memory("VmHWM") - before)
    assert not (folder / "touched").exists() and mib < MIB
    assert {file.name for file in folder.iterdir()} == {name}
    return n, len(loaded), mib


def is_checkpoint(value):
    assert {"model", "optim", "args", "model_config"} <= value.keys()


def is_weights(value):
    assert isinstance(value, dict)


@pytest.mark.parametrize("kind", ["bytes", "members and pickles"])
def test_checkpoints(kind, files, tmp_path, monkeypatch, record):
    data = files["best.pt"]
    strategy = damaged(data) if kind == "bytes" else damaged_zip(data)
    n, loaded, mib = examine("best.pt", load_checkpoint, data, strategy, 150, tmp_path, monkeypatch, is_checkpoint)
    record("Fuzzing", f"checkpoints with {kind} changed",
           "a checkpoint of plain values, or one line that names the file, and no code runs",
           f"{n} examples, {loaded} of which still load", mib=mib)


@pytest.mark.parametrize("name, given", [
    ("new.bin", "pytorch_model.bin with bytes, members and pickles changed"),
    ("old.bin", "pytorch_model.bin of before torch 1.6 with bytes changed"),
    ("model.safetensors", "model.safetensors with bytes and header changed")])
def test_weights(name, given, files, tmp_path, monkeypatch, record):
    data = files[name]
    strategy = {"new.bin": st.one_of(damaged(data), damaged_zip(data)), "old.bin": damaged(data),
                "model.safetensors": st.one_of(damaged(data), damaged_header(data))}[name]
    n, loaded, mib = examine(name, load_tensors, data, strategy, 150, tmp_path, monkeypatch, is_weights)
    record("Fuzzing", given, "a dict of tensors, or one line that names the file, and no code runs",
           f"{n} examples, {loaded} of which still load", mib=mib)


def test_pickles_of_nothing_but_opcodes(tmp_path, monkeypatch, record):
    """The loaders of both ways, given what only looks like a pickle."""
    strategy = st.lists(OPCODES, max_size=12).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")
    path = tmp_path / "weights.bin"
    monkeypatch.chdir(tmp_path)

    def check(content):
        path.write_bytes(content)
        for load in (load_tensors, load_checkpoint):
            with pytest.raises(UserError, match="weights.bin"):
                load(path)

    n = fuzz(check, 150, strategy)
    assert not (tmp_path / "touched").exists()
    record("Fuzzing", "pickles of random instructions, calls of functions among them",
           "one line that names the file, and no code runs", f"{n} examples")
