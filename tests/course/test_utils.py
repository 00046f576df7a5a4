"""utils.py without the network: masks, dtypes, seeds, devices, how scripts end, whole writes, local model files."""

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import utils
from files import errors as files
from files import pretrained
from files.errors import UserError
from files.pretrained import pretrained_file
from files.writing import atomic_write
from utils import get_extended_attention_mask


def test_mask_of_two_dimensions():
    mask = get_extended_attention_mask(torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.float32)
    assert mask.shape == (2, 1, 1, 3) and mask.dtype == torch.float32
    assert mask[:, 0, 0].tolist() == [[0, 0, -10000], [0, -10000, -10000]]


def test_mask_of_three_dimensions_and_no_other():
    mask = get_extended_attention_mask(torch.ones(2, 3, 3).tril(), torch.bfloat16)
    assert mask.shape == (2, 1, 3, 3) and mask.dtype == torch.bfloat16
    assert mask[1, 0, 0].float().tolist() == [0, pytest.approx(-10000, rel=0.01), pytest.approx(-10000, rel=0.01)]
    with pytest.raises(ValueError, match=r"\(3,\)"):
        get_extended_attention_mask(torch.ones(3), torch.float32)


def test_parameter_dtype():
    module = nn.Module()
    assert utils.get_parameter_dtype(module) == torch.get_default_dtype()
    module.register_buffer("position_ids", torch.arange(3))
    module.linear = nn.Linear(1, 1).to(torch.float16)
    assert utils.get_parameter_dtype(module) == torch.float16


def test_seed_repeats_all_three_generators():
    def draw():
        utils.seed_everything(7)
        return utils.random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_star_import_brings_what_course_files_use():
    assert not hasattr(utils, "__all__")
    assert {"get_extended_attention_mask", "get_parameter_dtype", "cached_path", "hf_bucket_url", "is_remote_url",
            "WEIGHTS_NAME", "CONFIG_NAME", "os", "torch", "nn", "Optional", "Union"} <= set(vars(utils))


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps")])
def test_device_and_hint(monkeypatch, capsys, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    chosen = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", chosen.append)
    assert utils.get_device(True).type == expected
    assert chosen == ([False] if cuda else [])
    assert capsys.readouterr().err == ""
    assert utils.get_device(False).type == "cpu"
    hint = capsys.readouterr().err
    assert hint.count("\n") == 1 and "--use_gpu" in hint and ("Test GPU" if cuda else "MPS") in hint


def test_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert utils.get_device(False).type == "cpu" and capsys.readouterr().err == ""
    with pytest.raises(UserError, match="Leave --use_gpu out"):
        utils.get_device(True)


@pytest.mark.parametrize(("error", "status", "words"), [
    (UserError("data/x.csv, line 3: no label"), 2, "error: data/x.csv, line 3: no label\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
])
def test_scripts_end_without_traceback(capsys, error, status, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        files.run_script(main)
    assert end.value.code == status and capsys.readouterr().err == words


@pytest.mark.parametrize("number, waits", [("0", 0), ("1", 3)])
def test_the_first_of_several_processes_speaks_for_all(number, waits, monkeypatch, capsys):
    """Unless it has not failed, and so has not made torchrun end the others while they wait."""
    monkeypatch.setenv("LOCAL_RANK", number)
    monkeypatch.setenv("WORLD_SIZE", "2")
    slept = []
    monkeypatch.setattr(files.time, "sleep", slept.append)

    def main(error):
        raise error

    for error, message in (
            (UserError("no label"), "no label"),
            (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5"),
             "another process of this training has ended, and its message says why; --resume goes on from last.pt")):
        with pytest.raises(SystemExit, match="2"):
            files.run_script(partial(main, error))
        assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(SystemExit, match="2"):
        files.Parser().parse_args(["--nonsense"])
    assert slept == [files.WAIT_FOR_THE_FIRST] * waits
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match="closed by peer"):
        files.run_script(partial(main, error))


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        files.run_script(lambda: 1 / 0)
    assert files.run_script(lambda: 5) == 5


def test_atomic_write(tmp_path):
    path = tmp_path / "new" / "folder" / "out.csv"
    with atomic_write(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "wb") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == "é\n".encode() and os.listdir(path.parent) == ["out.csv"]


def test_atomic_write_keeps_links_and_devices(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link") as file:
        file.write("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    with atomic_write(tmp_path / "pipe") as file:
        file.write("y")
    assert reader.communicate()[0] == b"y" and (tmp_path / "pipe").is_fifo()


def test_pretrained_file_here(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    both = (pretrained.SAFE_WEIGHTS_NAME, pretrained.WEIGHTS_NAME)
    assert pretrained_file(tmp_path, both) == str(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").touch()
    assert pretrained_file(str(tmp_path), both) == str(tmp_path / "model.safetensors")
    assert pretrained_file(tmp_path / "pytorch_model.bin", both) == str(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no vocab.txt"):
        pretrained_file(tmp_path, ("vocab.txt",))
    with pytest.raises(UserError, match="no such file or folder"):
        pretrained_file(tmp_path / "nowhere", ("vocab.txt",))


def test_packaged_model_is_checked_and_not_imported(tmp_path, monkeypatch):
    path = pretrained_file("minilm", ("model.safetensors", "pytorch_model.bin"))
    assert path.endswith(os.path.join("model", "model.safetensors")) and pretrained.PACKAGE not in sys.modules
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vocab.txt").write_text("[PAD]\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="SHA-256"):
        pretrained_file("minilm", ("vocab.txt",))
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="setup.sh"):
        pretrained_file("minilm", ("vocab.txt",))
