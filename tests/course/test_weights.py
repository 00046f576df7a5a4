"""Pretrained weights: every place they come from, every naming they have, and what transformers makes of ours."""

import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bert import BertModel
from config import BertConfig
from extensions.architecture.attention_heads import mha
from extensions.architecture.glu import gelu
from extensions.architecture.rmsnorm import rmsnorm
from extensions.architecture.rotary import rotary
from extensions.tuning.bitfit import bitfit
from extensions.tuning.lora import lora, merge
from extensions.tuning.prefix import prefix
from files.errors import UserError
from tests.helpers.file_server import serve
from tests.helpers.oracle import run_oracle

SMALL = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
         "intermediate_size": 20, "max_position_embeddings": 8}
INPUTS = (torch.tensor([[2, 9, 4, 3], [2, 5, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
          torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]))


def merged_lora(bert):
    """Add LoRA that has learned something, and merge it."""
    lora(bert)
    for name, p in bert.named_parameters():
        if name.endswith("lora_B"):
            p.data.normal_(std=0.1)
    merge(bert)


@pytest.fixture
def model():
    """A random model with every parameter far from its initial value."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SMALL, hidden_dropout_prob=0.2)).eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


@pytest.fixture
def folder(model, tmp_path):
    """The folder in which `save_pretrained` wrote that model."""
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@torch.no_grad()
def outputs(model):
    return model(*INPUTS)


def same_weights(model, other):
    return all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def rename(folder, new_name):
    """Write the weights in `folder` as a pytorch_model.bin with other keys; remove the safetensors file."""
    weights = {new_name(key): tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return weights


def test_a_folder_or_a_file_of_either_format(model, folder):
    assert same_weights(model, BertModel.from_pretrained(folder))
    assert same_weights(model, BertModel.from_pretrained(str(folder / "model.safetensors")))
    torch.save({key: tensor * 0 for key, tensor in model.state_dict().items()}, folder / "pytorch_model.bin")
    assert same_weights(model, BertModel.from_pretrained(folder))  # model.safetensors goes first
    assert BertModel.from_pretrained(folder / "pytorch_model.bin").pooler_dense.weight.count_nonzero() == 0
    (folder / "model.safetensors").unlink()
    assert BertModel.from_pretrained(folder).pooler_dense.weight.count_nonzero() == 0


@pytest.mark.parametrize("weights_file", ["model.safetensors", "pytorch_model.bin"])
def test_a_url_and_a_hub_id_are_downloaded_once(model, folder, tmp_path, monkeypatch, weights_file):
    if weights_file == "pytorch_model.bin":
        rename(folder, lambda key: key)
    root = "/some/bert-tiny/resolve/main"
    files = {f"{root}/{name}": (folder / name).read_bytes() for name in ("config.json", weights_file)}
    with serve(files) as server:
        monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MINBERT_HUB", server.url)
        assert same_weights(model, BertModel.from_pretrained("some/bert-tiny"))
        assert same_weights(model, BertModel.from_pretrained(f"{server.url}{root}/{weights_file}"))
        assert same_weights(model, BertModel.from_pretrained("some/bert-tiny", cache_dir=tmp_path / "other"))
        asked = len(server.log)
        assert same_weights(model, BertModel.from_pretrained("some/bert-tiny"))
        assert len(server.log) == asked
    assert (tmp_path / "cache" / "some--bert-tiny" / weights_file).is_file()
    assert same_weights(model, BertModel.from_pretrained("some/bert-tiny", local_files_only=True))


@pytest.mark.parametrize("new_name", [
    lambda key: key, lambda key: f"bert.{key}",
    lambda key: "bert." + key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
])
def test_other_names_of_the_same_weights(model, folder, new_name):
    weights = rename(folder, new_name)
    weights |= {"bert.embeddings.position_ids": torch.arange(8).unsqueeze(0), "cls.predictions.bias": torch.zeros(30),
                "cls.predictions.transform.LayerNorm.gamma": torch.ones(12)}
    torch.save(weights, folder / "pytorch_model.bin")
    loaded, info = BertModel.from_pretrained(folder, output_loading_info=True)
    assert same_weights(model, loaded)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


def test_our_own_names_as_a_state_dict(model, folder):
    weights = {f"bert.{key}": tensor + 1 for key, tensor in model.state_dict().items()}
    loaded, info = BertModel.from_pretrained(folder, state_dict={**weights, "classifier.bias": torch.zeros(2)},
                                             output_loading_info=True)
    torch.testing.assert_close(loaded.pooler_dense.bias, model.pooler_dense.bias + 1)
    assert torch.equal(loaded.position_ids, torch.arange(8).unsqueeze(0))  # a constant, not what the file says
    assert info["unexpected_keys"] == ["classifier.bias"]


def test_every_missing_and_misshapen_key_is_listed(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["pooler.dense.bias"], weights["encoder.layer.1.output.LayerNorm.weight"]
    weights["embeddings.word_embeddings.weight"] = torch.zeros(31, 12)
    weights["encoder.layer.0.intermediate.dense.bias"] = torch.zeros(21)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        BertModel.from_pretrained(folder)
    heading, *lines = str(error.value).splitlines()
    assert str(folder / "model.safetensors") in heading
    assert [line.strip() for line in lines] == [
        "missing bert_layers.1.out_layer_norm.weight", "missing pooler_dense.bias",
        "misshapen bert_layers.0.interm_dense.bias: (21,) in the file, (20,) in the model",
        "misshapen word_embedding.weight: (31, 12) in the file, (30, 12) in the model"]
    with pytest.raises(UserError, match=r"misshapen pos_embedding.weight: \(8, 12\) in the file, \(9, 12\)"):
        BertModel.from_pretrained("", config=BertConfig(**{**SMALL, "max_position_embeddings": 9}),
                                  state_dict=BertModel(BertConfig(**SMALL)).state_dict())


def test_keywords_override_the_configuration(model, folder):
    loaded = BertModel.from_pretrained(folder, hidden_dropout_prob=0.5, gradient_checkpointing=True)
    assert loaded.config.hidden_dropout_prob == 0.5 and loaded.embed_dropout.p == 0.5
    assert loaded.config.gradient_checkpointing and loaded.config.attention_probs_dropout_prob == 0.1
    assert not any(module.training for module in loaded.modules())
    assert same_weights(model, loaded)
    assert BertModel.from_pretrained(folder).embed_dropout.p == 0.2
    other = folder.parent / "other.json"
    other.write_text(json.dumps({**SMALL, "hidden_dropout_prob": 0.7}))
    assert BertModel.from_pretrained(folder, config=other).embed_dropout.p == 0.7


def test_transformers_reads_what_we_write_and_we_what_it_writes(model, folder, tmp_path):
    result = run_oracle("""
        import torch
        from transformers import BertForPreTraining, BertModel
        model, info = BertModel.from_pretrained(folder, output_loading_info=True)
        other = BertForPreTraining(model.config).eval()  # its keys have the prefix, and cls.* beside them
        other.save_pretrained(out)
        with torch.no_grad():
            found = [BERT.eval()(*inputs) for BERT in (model, other.bert)]
        result = {"left over": [sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys")],
                  "outputs": [{"last_hidden_state": o[0], "pooler_output": o[1]} for o in found]}
    """, folder=str(folder), out=str(tmp_path / "theirs"), inputs=INPUTS)
    assert result["left over"] == [[], []]
    torch.testing.assert_close(outputs(model), result["outputs"][0], rtol=0, atol=1e-5)
    theirs = BertModel.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(outputs(theirs), result["outputs"][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change, message", [
    (lora, "other weights than one"), (merged_lora, None), (bitfit, None), (prefix, "other weights than one"),
    (rmsnorm, "one's weights and computes something else"), (rotary, "one's weights and computes something else"),
    (partial(mha, heads=6), "one's weights and computes something else"),
    (partial(gelu, width=8), "other weights than one")])
def test_only_a_plain_encoder_is_written(change, message, model, tmp_path):
    """What is read again must compute the same, whatever a technique has made of the encoder."""
    model.train()
    change(model)
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=message) if message else nullcontext():
        model.save_pretrained(tmp_path / "out")
    assert model.training and before.equal(torch.get_rng_state()) and (tmp_path / "out").exists() == (message is None)
    if message is None:
        again = BertModel.from_pretrained(tmp_path / "out")
        for name, values in outputs(model.eval()).items():
            torch.testing.assert_close(outputs(again)[name], values)


def test_minilm_is_found_without_importing_its_package():
    code = ("import sys; from bert import BertModel; model = BertModel.from_pretrained('minilm');"
            "assert model.config.num_hidden_layers == 6 and not model.training;"
            "assert not [name for name in sys.modules if name.startswith('gt_all') or name == 'transformers']")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
