"""Dropout by site. Its oracle is the list of modules; of the five tests "trainable parameters" is "none is added"."""

import pytest
import torch

from engine.fast_dropout import use_fast_dropout
from engine.packed_attention import pack_attention
from extensions.architecture.dropout_sites import set_dropout
from files.errors import UserError
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps
from tests.helpers.regularizer_cases import a_batch, tiny_model, total

DROPOUT_SITES = {"embedding": 0.11, "attention": 0.12, "attention-output": 0.13, "ffn-output": 0.14, "head": 0.15}


def probabilities(model):
    """Return the probabilities of the model's dropout by what its modules are."""
    [layer] = model.bert.bert_layers
    heads = (model.sentiment_head, model.paraphrase_head, model.similarity_head)
    return {"embedding": [model.bert.embed_dropout.p], "attention": [layer.self_attention.dropout.p],
            "attention-output": [layer.attention_dropout.p], "ffn-output": [layer.out_dropout.p],
            "head": [module.p for head in heads for module in head if isinstance(module, torch.nn.Dropout)]}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("chosen", [{}, *({site: p} for site, p in DROPOUT_SITES.items()), DROPOUT_SITES], ids=str)
def test_exactly_the_named_sites_change(chosen, fast, bert_dir):
    model = tiny_model(bert_dir, dropout=0.1)
    names = list(model.state_dict())
    if fast:
        pack_attention(model)
        use_fast_dropout(model)
    set_dropout(model, chosen)
    found = probabilities(model)
    assert {site: set(p) for site, p in found.items()} == {site: {chosen.get(site, 0.1)} for site in DROPOUT_SITES}
    assert len(found["head"]) == 6 and list(model.state_dict()) == names


def test_what_a_technique_adds_to_the_encoder_is_at_no_site(bert_dir):
    model = tiny_model(bert_dir)
    model.bert.added = torch.nn.ModuleDict({"dropout": torch.nn.Dropout(0.3)})
    set_dropout(model, DROPOUT_SITES)
    assert model.bert.added["dropout"].p == 0.3


@pytest.mark.parametrize("site", DROPOUT_SITES)
def test_each_site_drops_by_itself_in_training_alone(site, bert_dir):
    model, batch = tiny_model(bert_dir), a_batch("sst", bert_dir)
    plain = forward_of(model, batch).logits
    set_dropout(model, {site: 0.5})
    assert not torch.allclose(forward_of(model, batch).logits, plain)
    assert forward_of(model.eval(), batch).logits.equal(plain)
    set_dropout(model.train(), {site: 0})
    wider = forward_of(model, a_batch("sst", bert_dir, extra=3))
    torch.testing.assert_close(forward_of(model, batch).logits, wider.logits)
    assert forward_of(model, batch).logits.equal(plain)


def test_wrong_sites_and_values_are_named_before_anything_changes(bert_dir):
    model = tiny_model(bert_dir)
    with pytest.raises(UserError, match="no dropout at 'heads'; choose of embedding, attention, attention-output, ff"):
        set_dropout(model, {"embedding": 0.3, "heads": 0.1})
    for p in (1.0, -0.1):
        with pytest.raises(UserError, match=f"dropout at head must be at least 0 and below 1, not {p}"):
            set_dropout(model, {"embedding": 0.3, "head": p})
    assert probabilities(model)["embedding"] == [0.0]


def test_the_loss_falls_in_20_steps(bert_dir):
    model, batch = tiny_model(bert_dir), a_batch("sst", bert_dir)
    set_dropout(model, {site: 0.1 for site in DROPOUT_SITES})
    losses = losses_of_20_steps(model, lambda: total(model, batch))
    assert losses[-1] < 0.6 * losses[0]
