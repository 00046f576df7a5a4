"""BERT equals transformers', its attention the written-out softmax; what it cannot do it refuses."""

import math

import pytest
import torch

import bert
from bert import BertModel, BertSelfAttention
from config import BertConfig
from files.pretrained import CONFIG_NAME, pretrained_file
from tests.helpers.oracle import run_oracle

# All sizes differ, so that no mix-up of dimensions goes unseen.
SMALL = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 40, "max_position_embeddings": 20, "layer_norm_eps": 1e-6}
B, T = 4, 11
LENGTHS = torch.tensor([11, 1, 6, 3])

ORACLE = """
import torch
from transformers import BertConfig, BertModel

def outputs(model, input_ids, attention_mask, token_type_ids):
    with torch.no_grad():
        found = model.eval()(input_ids, attention_mask, token_type_ids, output_hidden_states=True)
    return {"hidden_states": list(found.hidden_states), "pooler_output": found.pooler_output}

torch.manual_seed(1)
small_model = BertModel(BertConfig(**small, attn_implementation="eager"))
for p in small_model.parameters():  # far from the initial zeros and ones
    p.data += 0.3 * torch.randn_like(p)
minilm_model = BertModel.from_pretrained(minilm, attn_implementation="eager")
result = {"weights": small_model.state_dict(),
          "small": outputs(small_model, *small_inputs), "minilm": outputs(minilm_model, *minilm_inputs)}
"""


def inputs(vocab_size):
    """Return random (input_ids, attention_mask, token_type_ids), each (B, T)."""
    generator = torch.Generator().manual_seed(0)
    attention_mask = (torch.arange(T) < LENGTHS.unsqueeze(1)).long()
    input_ids = torch.randint(1, vocab_size, (B, T), generator=generator) * attention_mask
    return input_ids, attention_mask, (torch.arange(T) > LENGTHS.unsqueeze(1) // 2).long() * attention_mask


@pytest.fixture(scope="module")
def oracle():
    return run_oracle(ORACLE, small=SMALL, minilm=pretrained_file("minilm", (CONFIG_NAME,)).removesuffix(CONFIG_NAME),
                      small_inputs=inputs(60), minilm_inputs=inputs(30522))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SMALL)).eval()


@pytest.mark.parametrize("name", ["small", "minilm"])
@torch.no_grad()
def test_every_layer_equals_transformers(oracle, name):
    if name == "small":
        ours = BertModel.from_pretrained("", config=BertConfig(**SMALL), state_dict=oracle["weights"])
    else:
        ours = BertModel.from_pretrained("minilm")
    hidden_states = []
    for layer in ours.bert_layers:
        layer.register_forward_hook(lambda module, args, output: hidden_states.append(output))
    args = inputs(ours.config.vocab_size)
    output = ours(*args)
    torch.testing.assert_close([ours.embed(args[0], args[2]), *hidden_states], oracle[name]["hidden_states"],
                               rtol=0, atol=1e-5)
    torch.testing.assert_close(output["last_hidden_state"], hidden_states[-1], rtol=0, atol=0)
    torch.testing.assert_close(output["pooler_output"], oracle[name]["pooler_output"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_attention_is_the_softmax_of_the_paper(dtype, atol):
    torch.manual_seed(0)
    attention = BertSelfAttention(BertConfig(**SMALL)).eval()
    key, query, value = (2 * torch.randn(B, 4, T, 6, dtype=torch.float64) for _ in range(3))
    seen = torch.arange(T) < LENGTHS.unsqueeze(1)  # (B, T)

    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(6)
    weights = scores.exp() * seen[:, None, None, :]  # no -10000 here: unseen tokens have no weight
    weights = weights / weights.sum(-1, keepdim=True)
    expected = torch.einsum("bhqk,bhkd->bqhd", weights, value).reshape(B, T, 24)

    mask = bert.get_extended_attention_mask(seen.long(), dtype)
    found = attention.attention(key.to(dtype), query.to(dtype), value.to(dtype), mask)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def test_attention_drops_weights_in_training_only():
    attention = BertSelfAttention(BertConfig(**SMALL, attention_probs_dropout_prob=0.5))
    ones, mask = torch.ones(B, 4, T, 6), torch.zeros(B, 1, 1, T)
    torch.testing.assert_close(attention.eval().attention(ones, ones, ones, mask), torch.ones(B, T, 24))
    sums = attention.train().attention(ones, ones, ones, mask) * T / 2  # how many of T equal weights are left
    torch.testing.assert_close(sums, sums.round())
    assert sums.unique().numel() > 2


def test_initial_weights_are_the_papers():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**{**SMALL, "vocab_size": 500}, initializer_range=0.05))
    assert model.word_embedding.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert model.word_embedding.weight[0].count_nonzero() == 0  # [PAD]
    layer = model.bert_layers[0]
    assert layer.interm_dense.weight.std().item() == pytest.approx(0.05, rel=0.2)
    assert layer.interm_dense.bias.count_nonzero() == 0
    assert layer.out_layer_norm.weight.unique().tolist() == [1] and layer.out_layer_norm.bias.count_nonzero() == 0


def test_token_types_default_to_zero_and_count(model):
    input_ids, attention_mask, token_type_ids = inputs(60)
    default = model(input_ids, attention_mask)["pooler_output"]
    torch.testing.assert_close(default, model(input_ids, attention_mask, token_type_ids * 0)["pooler_output"])
    assert not torch.allclose(default, model(input_ids, attention_mask, token_type_ids)["pooler_output"])


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden_act": "relu"}, "hidden_act must be 'gelu', not 'relu'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute', not 'relative_key'"),
    ({"num_attention_heads": 5}, "hidden_size 24 must be a multiple of num_attention_heads 5"),
])
def test_an_architecture_that_it_does_not_have_is_refused(change, message):
    with pytest.raises(AssertionError, match=message):
        BertModel(BertConfig(**{**SMALL, **change}))


def test_a_text_that_is_too_long_is_refused(model):
    with pytest.raises(AssertionError, match="21 tokens, but this encoder has 20 positions; truncate"):
        model(torch.ones(1, 21, dtype=torch.long), torch.ones(1, 21, dtype=torch.long))
