"""A model.safetensors or pytorch_model.bin that is absurd, damaged or of other numbers ends in one message."""

import json
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert import BertModel
from config import BertConfig
from tests.files.test_hostile_config import SMALL
from tests.helpers.hostile import Call, refused, tensor, write_torch

BIAS = "pooler.dense.bias"  # (12,)
SAYS = "one error that names the file and what is wrong with it"


@pytest.fixture
def saved(tmp_path):
    """A folder with a small model, which loads."""
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path)
    BertModel.from_pretrained(tmp_path)
    return tmp_path


def header_and_data(path):
    """Return the header of a .safetensors file as a dict, and the bytes behind it."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def write_header(path, header, data):
    """Write a .safetensors file of a header, a dict or bytes, and data."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def one(**change):
    """Return what changes the header's entry of BIAS."""
    return lambda header, data: ({**header, BIAS: {**header[BIAS], **change}}, data)


HEADERS = {  # what a table row says -> (header, data) -> (header, data), and what the message says
    "tensors outside the file": (one(data_offsets=[10**9, 10**9 + 48]), "model.safetensors: "),
    "tensors that overlap": (one(data_offsets=[0, 48]), "model.safetensors: "),
    "a shape whose size overflows": (one(shape=[2**40, 2**40]), "model.safetensors: "),
    "a negative shape": (one(shape=[-12]), "model.safetensors: "),
    "an unknown dtype": (one(dtype="F1024"), "model.safetensors: "),
    "end before start": (one(data_offsets=[48, 0]), "model.safetensors: "),
    "5,000 tensors more": (lambda header, data: (
        {**header, **{f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2} for i in range(5_000)}},
        data), None),
    "a million tensors": (lambda header, data: (
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**6)) + b"}",
        b""), "its header claims 57,888,891 bytes"),
    "lists nested 100,000 deep": (lambda header, data: (b"[" * 100_000 + b"]" * 100_000, data), "model.safetensors: "),
    "a header that is no JSON": (lambda header, data: (b"{" * 100, data), "model.safetensors: "),
    "half of its data": (lambda header, data: (header, data[: len(data) // 2]), "model.safetensors: "),
    "data that no tensor claims": (lambda header, data: (header, data + b"\0" * 1000), "model.safetensors: "),
}


@pytest.mark.parametrize("given", HEADERS)
def test_headers(given, saved, record):
    change, message = HEADERS[given]
    path = saved / "model.safetensors"
    write_header(path, *change(*header_and_data(path)))
    if message is None:  # odd, but the weights are there
        assert len(BertModel.from_pretrained(saved, output_loading_info=True)[1]["unexpected_keys"]) == 5_000
    else:
        assert message in refused("model", saved, record, f"safetensors with {given}", SAYS, saved)


@pytest.mark.parametrize("given, length", [("2^63", 2**63), ("2^64 - 1", 2**64 - 1), ("more than the file has", 10**6)])
def test_a_header_that_claims_to_be_longer(given, length, saved, record):
    path = saved / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    message = refused("model", saved, record, f"safetensors whose header claims {given} bytes", SAYS, saved)
    assert "cannot read weights from" in message and "model.safetensors" in message


NUMBERS = {
    "NaN": (torch.full((12,), torch.nan), "pooler_dense.bias holds NaN or infinity"),
    "minus infinity": (torch.full((12,), -torch.inf), "pooler_dense.bias holds NaN or infinity"),
    "NaN of half precision": (torch.full((12,), torch.nan).half(), "pooler_dense.bias holds NaN or infinity"),
    "int64 in place of float32": (torch.zeros(12).long(), "pooler_dense.bias: torch.int64 in the file"),
    "booleans": (torch.zeros(12).bool(), "pooler_dense.bias: torch.bool in the file"),
    "float8": (torch.zeros(12).to(torch.float8_e4m3fn), "pooler_dense.bias: torch.float8_e4m3fn in the file"),
    "complex numbers": (torch.zeros(12, dtype=torch.complex64), "pooler_dense.bias: torch.complex64 in the file"),
    "a scalar in place of 12": (torch.tensor(1.0), "misshapen pooler_dense.bias: () in the file, (12,) in the model"),
}


@pytest.mark.parametrize("given", NUMBERS)
def test_numbers_that_are_no_weights(given, saved, record):
    values, message = NUMBERS[given]
    save_file({**load_file(saved / "model.safetensors"), BIAS: values}, saved / "model.safetensors")
    assert message in refused("model", saved, record, f"weights with {given}", "one error that names the tensor", saved)


PICKLES = {  # of a value and its records' bytes
    "a bias of 10^12 numbers that all are one": ({BIAS: tensor(1, (10**6, 10**6), (0, 0))}, b"\0" * 4),
    "a storage of 10^9 numbers in a record of 16 bytes": ({BIAS: tensor(10**9, (10**9,), (1,))}, b"\0" * 16),
    "a view beyond its storage": ({BIAS: tensor(4, (12,), (1,))}, b"\0" * 16),
    "a view that begins before its storage": ({BIAS: tensor(4, (2,), (1,), -1)}, b"\0" * 16),
    "a call of bytearray(9 * 10^8)": ({BIAS: Call(bytearray, 9 * 10**8)}, b""),
    "a tensor without values": (
        {BIAS: Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (12,), (1,), False)}, b""),
    "a list in place of a dict": ([1], b""),
    "text in place of tensors": ({BIAS: "zero", 3: None}, b""),
}


@pytest.mark.parametrize("given", PICKLES)
def test_pickles(given, saved, record):
    value, data = PICKLES[given]
    (saved / "model.safetensors").unlink()
    write_torch(saved / "pytorch_model.bin", value, {"0": data})
    assert "pytorch_model.bin" in refused("model", saved, record, f"pytorch_model.bin with {given}", SAYS, saved)


@pytest.mark.parametrize("given, value, comment", [
    ("a tensor's bytes", {BIAS: tensor(4, (4,), (1,))}, b""),
    ("a call of bytearray(9 * 10^8)", {BIAS: Call(bytearray, 9 * 10**8)}, b"x" * 2000),
    ("the same behind what only torch takes for the end", {BIAS: Call(bytearray, 9 * 10**8)}, b"x" * 2000 + b"PK\5\6")])
def test_compressed_archives(given, value, comment, saved, record):
    """A compressed pickle hides what it calls, and a long comment makes room for what it unpacks to."""
    (saved / "model.safetensors").unlink()
    write_torch(saved / "pytorch_model.bin", value, {"0": b"\0" * 16}, zipfile.ZIP_DEFLATED, comment)
    assert "pytorch_model.bin" in refused("model", saved, record, f"pytorch_model.bin, compressed, with {given}",
                                          "refused before it is unpacked", saved)


def test_memory_that_nothing_fills_counts_for_no_weights(saved, record):
    """torch's unpickler lets `torch.Tensor(n)` be called, which takes addresses and no memory."""
    (saved / "model.safetensors").unlink()
    (saved / "config.json").write_text(json.dumps({**SMALL, "vocab_size": 10**7}))
    write_torch(saved / "pytorch_model.bin", {BIAS: Call(torch.Tensor, 2 * 10**8)}, {})
    assert "and a model with this config.json has 120," in refused(
        "model", saved, record, "pytorch_model.bin with a call of torch.Tensor(2 * 10^8), and a config.json as large",
        "refused before the model is made", saved)


@pytest.mark.parametrize("load, name", [("model", "config.json"), ("model", "vocab.txt"), ("tokenizer", "config.json")])
def test_another_file_of_the_folder(load, name, saved, record):
    (saved / "vocab.txt").touch()
    message = refused(load, saved / name, record, f"DIR/{name} as the {load}", "an error: name the folder", saved)
    assert f"{name} is not " in message and message.endswith(f": name its folder, {saved}.")


def test_an_archive_that_unpacks_to_a_thousand_times_its_size(saved, record):
    (saved / "model.safetensors").unlink()
    write_torch(saved / "pytorch_model.bin", {BIAS: tensor(2**24, (2**24,), (1,))}, {"0": b"\0" * 2**26},
                zipfile.ZIP_DEFLATED)
    assert (saved / "pytorch_model.bin").stat().st_size < 10**6
    assert "holds more than tensors" in refused("model", saved, record, "pytorch_model.bin that unpacks to 67 MB",
                                                "refused before it is unpacked", saved)


def test_more_than_50_misfits_are_counted(saved, record):
    (saved / "config.json").write_text(json.dumps({**SMALL, "num_hidden_layers": 40}))
    message = refused("model", saved, record, "config.json with 40 layers for weights that have 2",
                      "a list of what is missing, its end counted", saved)
    assert "missing bert_layers.10.attention_dense.bias" in message and message.endswith("and 558 more")
