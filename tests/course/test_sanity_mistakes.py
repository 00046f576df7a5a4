"""sanity_check.py finds the mistakes that a first BERT has, and says where."""

import functools

import pytest
import torch
from torch.nn import functional as F

import sanity_check
from bert import BertLayer, BertModel, BertSelfAttention
from files.errors import UserError


@pytest.fixture
def small():
    return torch.load(sanity_check.DATA, weights_only=True)["small"]


def unscaled(self, key, query, value, attention_mask):
    scores = query @ key.transpose(-1, -2) + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def masked_after_softmax(self, key, query, value, attention_mask):
    probs = (query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5).softmax(-1) * (attention_mask == 0)
    return (probs @ value).transpose(1, 2).flatten(2)


def unmasked(self, key, query, value, attention_mask):
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def always_dropping(self, key, query, value, attention_mask):
    context = F.scaled_dot_product_attention(query, key, value, attention_mask, self.dropout.p)
    return context.transpose(1, 2).flatten(2)


def swapped(self, key, query, value, attention_mask):
    return F.scaled_dot_product_attention(key, query, value, attention_mask).transpose(1, 2).flatten(2)


def heads_not_joined(self, key, query, value, attention_mask):
    context = F.scaled_dot_product_attention(query, key, value, attention_mask)
    return context.reshape(key.shape[0], key.shape[2], -1)


@pytest.mark.parametrize("wrong", [
    unscaled, masked_after_softmax, unmasked, always_dropping, swapped, heads_not_joined,
])
def test_wrong_attention_is_found(wrong, small, monkeypatch):
    monkeypatch.setattr(BertSelfAttention, "attention", wrong)
    with pytest.raises(sanity_check.Mismatch, match=r"self_attention\[.*expected"):
        sanity_check.check_small(small)


@pytest.mark.parametrize("wrong", [
    lambda self, input, output, dense, dropout, norm: input + dropout(dense(output)),
    lambda self, input, output, dense, dropout, norm: norm(dropout(dense(output))),
    lambda self, input, output, dense, dropout, norm: input + norm(dropout(dense(output))),
    lambda self, input, output, dense, dropout, norm: norm(input + dropout(output if output.shape == input.shape
                                                                           else dense(output))),
    lambda self, input, output, dense, dropout, norm: norm(input + F.dropout(dense(output))),
    lambda self, input, output, dense, dropout, norm: F.layer_norm(input + dense(output), norm.normalized_shape,
                                                                   norm.weight, norm.bias),  # not the config's eps
], ids=["no norm", "no residual", "norm first", "no attention_dense", "dropout", "eps"])
def test_a_wrong_layer_is_found(wrong, small, monkeypatch):
    monkeypatch.setattr(BertLayer, "add_norm", wrong)
    with pytest.raises(sanity_check.Mismatch, match=r"bert_layers\[0\]\["):
        sanity_check.check_small(small)


@pytest.mark.parametrize("attribute, wrong, message", [
    ("embed", lambda self, ids, types=None: self.embed_layer_norm(self.word_embedding(ids)), r"embed\["),
    ("embed", lambda self, ids, types=None: self.embed_layer_norm(
        self.word_embedding(ids) + self.pos_embedding(self.position_ids[:, :9])), r"embed\["),
    ("encode", lambda self, states, mask: self.bert_layers[0](states, (1 - mask[:, None, None, :]) * -1e4),
     r"^last_hidden_state\["),
    ("encode", lambda self, states, mask: states[:, :4], "^last_hidden_state has shape"),
    ("pooler_af", torch.nn.Identity(), r"^pooler_output\["),
], ids=["words only", "no token types", "one layer", "shape", "no tanh"])
def test_a_wrong_model_is_found(attribute, wrong, message, small, monkeypatch):
    if attribute == "pooler_af":
        monkeypatch.setattr(torch.nn, "Tanh", lambda: wrong)
    else:
        monkeypatch.setattr(BertModel, attribute, wrong)
    with pytest.raises(sanity_check.Mismatch, match=message):
        sanity_check.check_small(small)


def test_the_tanh_gelu_and_ignored_token_types_are_found(small, monkeypatch):
    def forward_without_types(self, input_ids, attention_mask, token_type_ids=None, forward=BertModel.forward):
        return forward(self, input_ids, attention_mask)

    monkeypatch.setattr(BertModel, "forward", forward_without_types)
    with pytest.raises(sanity_check.Mismatch, match="of a pair"):
        sanity_check.check_small(small)
    monkeypatch.setattr(F, "gelu", functools.partial(F.gelu, approximate="tanh"))
    with pytest.raises(sanity_check.Mismatch, match=r"bert_layers\[0\]"):
        sanity_check.check_small(small)


def test_nan_and_other_attribute_names_are_found(small):
    with pytest.raises(sanity_check.Mismatch, match=r"embed\[0\] is nan, expected 0"):
        sanity_check.compare("embed", "", torch.tensor([torch.nan]), torch.zeros(1))
    small["weights"]["pooler.dense.bias"][0] = float("nan")
    with pytest.raises(UserError, match=r"pooler_dense\.bias holds NaN"):
        sanity_check.check_small(small)
    del small["weights"]["pooler.dense.bias"]
    with pytest.raises(UserError, match=r"missing pooler_dense\.bias"):
        sanity_check.check_small(small)
