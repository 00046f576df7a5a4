"""What the contract says of the model, the configuration, the masks, the tokenizer and AdamW, by hand-made cases."""
import math
from types import SimpleNamespace

import pytest
import torch

from base_bert import BertPreTrainedModel
from bert import BertLayer, BertModel, BertSelfAttention
from config import BertConfig, PretrainedConfig
from optimizer import AdamW
from tokenizer import BertTokenizer
from utils import get_extended_attention_mask, get_parameter_dtype

SMALL = {"vocab_size": 50, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
         "intermediate_size": 20, "max_position_embeddings": 16}
DOWNLOAD_KEYWORDS = {"force_download": False, "resume_download": False, "proxies": None, "local_files_only": True,
                     "use_auth_token": None, "revision": None, "mirror": None}

MODEL_ATTRIBUTES = ("word_embedding pos_embedding tk_type_embedding embed_layer_norm embed_dropout position_ids "
                    "bert_layers pooler_dense pooler_af")
LAYER_ATTRIBUTES = ("attention_dense attention_layer_norm attention_dropout interm_dense interm_af out_dense "
                    "out_layer_norm out_dropout")
ATTENTION_ATTRIBUTES = "query key value dropout"

EMBEDDING_KEYS = """word_embedding.weight pos_embedding.weight tk_type_embedding.weight position_ids
    embed_layer_norm.weight embed_layer_norm.bias pooler_dense.weight pooler_dense.bias"""
LAYER_KEYS = """self_attention.query.weight self_attention.query.bias self_attention.key.weight
    self_attention.key.bias self_attention.value.weight self_attention.value.bias attention_dense.weight
    attention_dense.bias attention_layer_norm.weight attention_layer_norm.bias interm_dense.weight interm_dense.bias
    out_dense.weight out_dense.bias out_layer_norm.weight out_layer_norm.bias"""


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SMALL)).eval()


def test_attributes(model):
    assert isinstance(model, BertPreTrainedModel)
    assert [name for name in MODEL_ATTRIBUTES.split() if not hasattr(model, name)] == []
    assert len(model.bert_layers) == 2
    for layer in model.bert_layers:
        assert isinstance(layer, BertLayer) and isinstance(layer.self_attention, BertSelfAttention)
        assert [name for name in LAYER_ATTRIBUTES.split() if not hasattr(layer, name)] == []
        assert [name for name in ATTENTION_ATTRIBUTES.split() if not hasattr(layer.self_attention, name)] == []


def test_checkpoint_keys_are_exactly_the_courses(model):
    layers = [f"bert_layers.{i}.{key}" for i in range(2) for key in LAYER_KEYS.split()]
    assert sorted(model.state_dict()) == sorted(EMBEDDING_KEYS.split() + layers)
    assert model.position_ids.tolist() == [list(range(16))]


def test_forward_is_embed_encode_pool(model):
    ids, mask = torch.tensor([[1, 5, 7, 2], [1, 9, 2, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    output = model(ids, mask)
    assert set(output) == {"last_hidden_state", "pooler_output"}
    hidden_states = model.encode(model.embed(ids), mask)  # B x T mask
    torch.testing.assert_close(output["last_hidden_state"], hidden_states)
    assert hidden_states.shape == (2, 4, 12)
    torch.testing.assert_close(output["pooler_output"], torch.tanh(model.pooler_dense(hidden_states[:, 0])))


def test_layers_take_the_additive_mask_and_add_norm_is_the_residual_step(model):
    layer, x = model.bert_layers[0], torch.randn(2, 4, 12)
    mask = get_extended_attention_mask(torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), torch.float32)
    attended = layer.add_norm(x, layer.self_attention(x, mask), layer.attention_dense, layer.attention_dropout,
                              layer.attention_layer_norm)
    by_hand = layer.attention_layer_norm(x + layer.attention_dense(layer.self_attention(x, mask)))
    torch.testing.assert_close(attended, by_hand)
    widened = torch.nn.functional.gelu(layer.interm_dense(attended))
    torch.testing.assert_close(layer(x, mask), layer.out_layer_norm(attended + layer.out_dense(widened)))


def test_attention_takes_the_key_first(model):
    attention, x = model.bert_layers[0].self_attention, torch.randn(2, 4, 12)
    mask = get_extended_attention_mask(torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.float32)
    key, query, value = (attention.transform(x, linear) for linear in (attention.key, attention.query, attention.value))
    assert key.shape == (2, 3, 4, 4)  # B, H, T, D
    torch.testing.assert_close(key[1, 2, 3], attention.key(x)[1, 3, 8:12])

    scores = query @ key.transpose(-1, -2) / math.sqrt(4) + mask
    by_hand = (scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 4, 12)
    torch.testing.assert_close(attention.attention(key, query, value, mask), by_hand)
    torch.testing.assert_close(attention(x, mask), by_hand)


def test_extended_attention_mask():
    mask = get_extended_attention_mask(torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.float32)
    assert mask.shape == (2, 1, 1, 3) and mask.dtype == torch.float32
    assert mask.flatten().tolist() == [0.0, 0.0, -10000.0, 0.0, -10000.0, -10000.0]
    assert get_extended_attention_mask(torch.ones(1, 2, dtype=torch.long), torch.bfloat16).dtype == torch.bfloat16


def test_dtype(model):
    assert model.dtype == torch.float32 == get_parameter_dtype(model)
    assert model.to(torch.bfloat16).dtype == torch.bfloat16


def test_from_pretrained_reads_what_save_pretrained_wrote(model, tmp_path):
    model.save_pretrained(str(tmp_path))
    loaded = BertModel.from_pretrained(str(tmp_path), cache_dir=str(tmp_path / "cache"), **DOWNLOAD_KEYWORDS)
    assert not loaded.training
    assert loaded.config.hidden_size == 12
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


def test_from_pretrained_takes_config_state_dict_and_gives_loading_info(model, tmp_path):
    model.save_pretrained(str(tmp_path))
    config = BertConfig(**SMALL, attention_probs_dropout_prob=0.5)
    doubled = {name: t * 2 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    loaded, info = BertModel.from_pretrained(str(tmp_path), config=config, state_dict=doubled, output_loading_info=True)
    assert loaded.config.attention_probs_dropout_prob == 0.5
    torch.testing.assert_close(loaded.pooler_dense.weight, model.pooler_dense.weight * 2)
    assert {"missing_keys", "unexpected_keys", "error_msgs"} <= set(info)
    assert info["missing_keys"] == []


def test_config_round_trips(tmp_path):
    config = BertConfig(hidden_size=24, num_attention_heads=2)
    values = config.to_dict()
    assert type(values) is dict and values["hidden_size"] == 24 and values["vocab_size"] == 30522
    assert BertConfig.from_dict(values).to_dict() == values
    assert PretrainedConfig(anything=3).anything == 3

    (tmp_path / "config.json").write_text('{"hidden_size": 36, "model_type": "bert", "num_attention_heads": 4}')
    assert BertConfig.from_pretrained(str(tmp_path)).hidden_size == 36
    read, unused = BertConfig.get_config_dict(str(tmp_path))
    assert read == {"hidden_size": 36, "model_type": "bert", "num_attention_heads": 4} and unused == {}


def test_tokenizer_methods(tiny_bert, tiny_cache, tmp_path):
    tokenizer = BertTokenizer.from_pretrained("bert-base-uncased")
    assert isinstance(BertTokenizer(str(tiny_bert / "vocab.txt")), BertTokenizer)
    specials = {"pad": ("[PAD]", 0), "unk": ("[UNK]", 100), "cls": ("[CLS]", 101), "sep": ("[SEP]", 102),
                "mask": ("[MASK]", 103)}
    for name, (token, i) in specials.items():
        assert (getattr(tokenizer, f"{name}_token"), getattr(tokenizer, f"{name}_token_id")) == (token, i)
        assert tokenizer.convert_tokens_to_ids(token) == i and tokenizer.convert_ids_to_tokens(i) == token

    assert tokenizer.tokenize("A good movie!") == ["a", "good", "movie", "!"]
    pair = tokenizer("a cat", "a dog", padding="max_length", truncation=True, max_length=9)
    a, cat, dog = tokenizer.convert_tokens_to_ids(["a", "cat", "dog"])
    assert pair["input_ids"] == [101, a, cat, 102, a, dog, 102, 0, 0] and pair["token_type_ids"] == [0] * 4 + [
        1] * 3 + [0] * 2 and pair["attention_mask"] == [1] * 7 + [0] * 2
    batch = tokenizer(["a cat", "dog"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[101, a, cat, 102], [101, dog, 102, 0]]
    assert tokenizer.encode("a cat") == [101, a, cat, 102]
    assert tokenizer.batch_encode_plus(["a cat"])["input_ids"] == [[101, a, cat, 102]]
    assert tokenizer.decode([101, a, cat, 102], skip_special_tokens=True) == "a cat"
    assert tokenizer.batch_decode([[a, cat], [dog]]) == ["a cat", "dog"]
    tokenizer.save_pretrained(str(tmp_path))
    assert BertTokenizer.from_pretrained(str(tmp_path)).encode("a cat") == [101, a, cat, 102]


def test_adamw_first_step_is_the_contracts():
    """The efficient bias correction leaves eps unscaled; the decay follows the gradient update."""
    p = torch.nn.Parameter(torch.tensor([1.0]))
    p.grad = torch.tensor([0.5])
    optimizer = AdamW([p], lr=0.1, eps=0.1, weight_decay=0.1)
    assert optimizer.step(closure=lambda: SimpleNamespace(loss=7)).loss == 7
    # m = .05, v = .00025, step size = .1 sqrt(1 - .999) / (1 - .9) = .0316228; 1 - .0316228 m / (sqrt(v) + .1)
    # = .9863473, then times 1 - lr * weight decay = .99
    assert p.item() == pytest.approx(0.9764838, abs=1e-6)


def test_adamw_without_bias_correction():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    p.grad = torch.tensor([0.5])
    AdamW([p], lr=0.1, eps=0.1, correct_bias=False).step()
    assert p.item() == pytest.approx(1 - 0.1 * 0.05 / (math.sqrt(0.00025) + 0.1), abs=1e-6)
