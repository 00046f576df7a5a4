"""Weight files that are damaged, hostile or no weights at all end in one clear message, and run nothing."""

import pytest
import torch

from base_bert import load_tensors
from bert import BertModel
from config import BertConfig
from files.errors import UserError
from tests.helpers.hostile import save_hostile

SMALL = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}


@pytest.fixture
def folder(tmp_path):
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path):
    touched = tmp_path / "touched"
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):  # torch's format, and the one it had before 1.6
        save_hostile(folder / "pytorch_model.bin", touched, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="pytorch_model.bin.*could run code: refused") as error:
            BertModel.from_pretrained(folder)
        assert "model.safetensors" in str(error.value)
        assert "weights_only" not in str(error.value)  # torch's own message advises to turn the check off
        assert not touched.exists()


@pytest.mark.parametrize("damage", [
    lambda content: content[:-50], lambda content: b"", lambda content: b"<html>404: not found</html>",
    lambda content: content[:20] + b"\xff" * 20 + content[40:],
])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_is_named(folder, name, damage):
    torch.save({"pooler.dense.bias": torch.zeros(12)}, folder / "pytorch_model.bin")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(UserError, match=name):
        load_tensors(folder / name)


@pytest.mark.parametrize("contents", [[torch.ones(1)], torch.ones(1), {"epoch": 3}, {"model": {"bias": torch.ones(1)}}])
def test_a_file_without_a_dict_of_tensors_is_refused(folder, contents):
    torch.save(contents, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin"):
        BertModel.from_pretrained(folder / "pytorch_model.bin")


def test_a_folder_without_weights_and_a_config_that_is_none(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors and no pytorch_model.bin"):
        BertModel.from_pretrained(folder)
    for text in ("{", "[1]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json"):
            BertModel.from_pretrained(folder)
    with pytest.raises(UserError, match="no such file or folder"):
        BertModel.from_pretrained(str(folder / "nowhere"))
