"""Layers over real tokens alone: equal where there are tokens, whatever other techniques have put into the encoder."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from bert import BertSelfAttention
from engine import unpadded
from engine.attention_backends import use_attention_backend
from engine.packed_attention import pack_attention
from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.pals import pals
from files.errors import UserError
from multitask_classifier import MultitaskBERT
from tests.engine.test_attention_backends import a_model, compare
from tests.helpers.fixtures_tiny import forward_of, tiny_bert_dir
from tests.helpers.regularizer_cases import a_batch


class Counted(nn.Module):
    """Counts the rows of what a linear layer is given."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.shapes = linear, []

    def forward(self, x):
        self.shapes.append(tuple(x.shape[:-1]))
        return self.linear(x)


def test_hidden_states_are_equal_at_tokens_and_zero_at_padding(bert_dir):
    plain, other = a_model(bert_dir).double(), a_model(bert_dir).double()
    use_attention_backend(other, "unpadded", "cpu", torch.float64)
    batch = a_batch("para", bert_dir, extra=2)
    ids, mask = batch["token_ids_1"], batch["attention_mask_1"].clone()
    mask[1] = 0  # a row of padding alone
    mask[2, 1] = 0  # padding in the midst
    expected, given = (model.bert(ids, mask) for model in (plain, other))
    real = mask.bool()
    states, padded = given["last_hidden_state"], expected["last_hidden_state"]
    torch.testing.assert_close(states[real], padded[real], rtol=0, atol=1e-12)
    assert (states[~real] == 0).all() and padded[~real].abs().min() > 0
    assert given["pooler_output"].isfinite().all()
    torch.testing.assert_close(given["pooler_output"][0], expected["pooler_output"][0], rtol=0, atol=1e-12)


def test_linear_layers_are_given_real_tokens_alone(bert_dir):
    """Fails where unpadded is the padded encoder."""
    batch = a_batch("sst", bert_dir, extra=5)
    N = int(batch["attention_mask"].sum())
    for kind, of_query in ((BertSelfAttention, (1, N)), (Own.Rotated, tuple(batch["attention_mask"].shape))):
        model = a_model(bert_dir)
        layer = model.bert.bert_layers[0]
        layer.self_attention.__class__ = kind
        layer.interm_dense, layer.self_attention.query = map(Counted, (layer.interm_dense, layer.self_attention.query))
        assert use_attention_backend(model, "unpadded", "cpu") == "real tokens alone in 1 of 1 layers"
        forward_of(model, batch).logits
        assert layer.interm_dense.shapes == [(1, N)] and layer.self_attention.query.shapes == [of_query]


class Own:
    """Attentions of other techniques, each with one method of its own that sees other tokens."""

    class Biased(BertSelfAttention):
        def attention(self, key, query, value, attention_mask):
            T = key.shape[2]
            distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
            return super().attention(key, query, value, attention_mask - 0.3 * distance)

    class Rotated(BertSelfAttention):
        def transform(self, x, linear_layer):
            return super().transform(x, linear_layer) * torch.linspace(0.5, 1, x.shape[1])[:, None]

    class AddsCls(BertSelfAttention):
        def forward(self, hidden_states, attention_mask):
            return super().forward(hidden_states, attention_mask) + hidden_states[:, :1]


@pytest.mark.parametrize("kind", [Own.Biased, Own.Rotated, Own.AddsCls])
@pytest.mark.parametrize("packed", ["before", "after", "not"])
def test_other_techniques_attention_goes_on_working(kind, packed, bert_dir):
    def made(name):
        model = a_model(bert_dir)
        for layer in model.bert.bert_layers:
            layer.self_attention.__class__ = kind
        if packed == "before":
            pack_attention(model)
        use_attention_backend(model, name, "cpu")
        if packed == "after":
            pack_attention(model)
        return model
    batch = a_batch("sst", bert_dir, extra=2)
    plain = made("auto")
    assert not torch.allclose(forward_of(plain, batch).logits, forward_of(a_model(bert_dir), batch).logits, atol=1e-4)
    for name in ("math", "unpadded"):
        compare(plain, made(name), batch)


def test_a_class_may_say_that_it_treats_tokens_one_by_one(bert_dir):
    class Scaled:
        tokenwise = True

        def forward(self, hidden_states, attention_mask, **options):
            return 1.1 * super().forward(hidden_states, attention_mask, **options)

    def made(name, adapt=()):
        model = a_model(bert_dir, adapt)
        for layer in model.bert.bert_layers:
            layer.__class__ = type("ScaledLayer", (Scaled, type(layer)), {})
        return model, use_attention_backend(model, name, "cpu")

    (plain, _), (other, said) = made("auto"), made("unpadded")
    assert said == "real tokens alone in 1 of 1 layers"
    compare(plain, other, a_batch("sst", bert_dir, extra=2))
    both = [lambda bert: (pals(bert, heads=2), extra_attention(bert))]
    (plain, _), (other, said) = made("auto", both), made("unpadded", both)
    assert said == "real tokens alone in 1 of 2 layers"  # what it is over has its say too
    compare(plain, other, a_batch("sst", bert_dir, extra=2))


def test_layers_of_other_techniques(bert_dir):
    def both(bert):
        pals(bert, heads=2)
        extra_attention(bert)
    plain, other = a_model(bert_dir, [both]), a_model(bert_dir, [both])
    assert use_attention_backend(other, "unpadded", "cpu") == "real tokens alone in 1 of 2 layers"
    for task, pairs in (("sst", "cross"), ("para", "cross")):
        compare(plain, other, a_batch(task, bert_dir, extra=2))
    with pytest.raises(UserError, match="unpadded: another technique has layers of its own .* leave one"):
        use_attention_backend(a_model(bert_dir, [lambda bert: pals(bert, heads=2)]), "unpadded", "cpu")
    layers = MultitaskBERT(SimpleNamespace(pretrained=bert_dir, option="finetune", hidden_dropout_prob=0.0,
                                           pooling="layers"))
    with pytest.raises(UserError, match="--pooling layers"):
        use_attention_backend(layers, "unpadded", "cpu")


def lengths_kernel(query, key, value, ends, other_ends, T, other_T):
    """What torch's kernel for texts of several lengths computes, text by text: (N, H, D)."""
    assert ends is other_ends and T == other_T and ends.dtype == torch.int32 and ends[-1] == len(query)
    texts = [nn.functional.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in (query, key, value)))
             for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return torch.cat(texts, dim=1).transpose(0, 1)


def test_the_kernel_for_texts_of_several_lengths_is_given_their_ends(bert_dir, monkeypatch):
    """Its CUDA kernel is not here; what it is given is checked against a loop over the texts."""
    import torch.nn.attention.varlen as varlen

    calls = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args: (calls.append(1), lengths_kernel(*args))[1])
    plain, other = a_model(bert_dir), a_model(bert_dir, packed=True)
    use_attention_backend(other, "unpadded", "cpu")
    monkeypatch.setattr(unpadded.UnpaddedAttention, "takes_lengths", lambda self, query: self.plain)
    compare(plain, other, a_batch("sst", bert_dir, extra=2))
    assert calls


@pytest.mark.gpu
def test_unpadded_on_the_gpu_in_half_precision(tmp_path):
    weights = str(tiny_bert_dir(tmp_path / "bert", hidden_size=32, num_attention_heads=2))  # heads of 16
    batch = {name: value.cuda() if torch.is_tensor(value) else value
             for name, value in a_batch("sst", weights, extra=2).items()}
    plain, other = a_model(weights).cuda().eval(), a_model(weights).cuda().eval()
    use_attention_backend(other, "unpadded", "cuda", torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(forward_of(other, batch).logits, forward_of(plain, batch).logits, rtol=0, atol=0.02)


def test_padding_changes_nothing(bert_dir):
    model = a_model(bert_dir)
    use_attention_backend(model, "unpadded", "cpu")
    values = [forward_of(model, a_batch("sst", bert_dir, extra)).logits for extra in (0, 4)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)
