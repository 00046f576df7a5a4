"""Prompt tuning: embeddings before the input's, equal to transformers on the same embeddings; callers see the text."""

import copy

import pytest
import torch

from bert import BertModel
from config import BertConfig
from engine.packed_attention import pack_attention
from extensions import ADAPT
from extensions.architecture.pals import pals
from extensions.architecture.task_layers import task_layers
from extensions.heads.pooling import hidden_states_of
from extensions.penalties.smart import smart
from extensions.specs import from_spec
from extensions.tuning.mixout import mixout
from extensions.tuning.prefix import prefix
from extensions.tuning.prompt import PromptedBert, prompt
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps
from tests.helpers.oracle import run_oracle
from tests.helpers.regularizer_cases import COURSE_TASKS, a_batch, no_waiting, tiny_model, total, value_of

# The last position's embedding is made zeros, so that it serves the oracle for none.
SMALL = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 40, "max_position_embeddings": 20, "layer_norm_eps": 1e-6}
P, T = 5, 7
BOTH = pytest.mark.parametrize("encoder", ["none", "mlp"])


def prompted(bert_dir, dropout=0.0, option="finetune", **options):
    """Return a tiny model with a prompt in its encoder, the same at every call."""
    model = tiny_model(bert_dir, dropout, option=option)
    prompt(model.bert, **{"length": P, **options})
    return model


ORACLE = """
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(1)
model = BertModel(BertConfig(**small)).eval()
for p in model.parameters():  # far from the initial zeros and ones
    p.data += 0.3 * torch.randn_like(p)
model.embeddings.position_embeddings.weight.data[19] = 0
(B, T), words = input_ids.shape, model.embeddings.word_embeddings
prompt = torch.randn(P, 24)
with torch.no_grad():
    output = model(inputs_embeds=torch.cat([prompt.expand(B, -1, -1), words(input_ids)], 1),
                   attention_mask=torch.cat([torch.ones(B, P), attention_mask], 1),
                   token_type_ids=torch.cat([torch.zeros(B, P, dtype=torch.long), token_type_ids], 1),
                   position_ids=torch.cat([torch.full((P,), 19), torch.arange(T)]).expand(B, -1),
                   output_hidden_states=True)
result = {"bert": model.state_dict(), "prompt": prompt, "states": [h[:, P:] for h in output.hidden_states]}
"""


@pytest.fixture(scope="module")
def case():
    """Return (a prompted encoder, its inputs, the oracle's hidden states without those of the prompt)."""
    inputs = {"input_ids": torch.arange(1, 22).view(3, T), "token_type_ids": (torch.arange(T) > 3).long().expand(3, -1),
              "attention_mask": (torch.arange(T) < torch.tensor([[T], [1], [4]])).long()}
    oracle = run_oracle(ORACLE, small=SMALL, P=P, **inputs)
    bert = BertModel.from_pretrained("", config=BertConfig(**SMALL), state_dict=oracle["bert"])
    prompt(bert, length=P)
    bert.prompt.embedding.data = oracle["prompt"]
    return bert, inputs, oracle["states"]


@torch.no_grad()
def test_the_encoder_equals_transformers_with_the_same_embeddings_before_the_inputs(case):
    bert, inputs, states = case
    for packed in (False, True):
        if packed:
            pack_attention(bert)
        output = bert(**inputs)
        torch.testing.assert_close(output["last_hidden_state"], states[-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(output["pooler_output"], bert.pooler_dense(states[-1][:, 0]).tanh())


@torch.no_grad()
def test_pooling_of_layers_sees_the_text_alone(case):
    bert, inputs, states = case
    with hidden_states_of(bert) as ours:
        bert(**inputs)
    torch.testing.assert_close(ours, states, rtol=0, atol=1e-5)


def test_begins_as_words_the_same_at_every_call(bert_dir):
    model, again = prompted(bert_dir), tiny_model(bert_dir)
    torch.manual_seed(99)
    prompt(again.bert, length=P)
    words = model.bert.prompt.embedding
    assert words.equal(again.bert.prompt.embedding) and words.shape == (P, 24)
    rows = (words[:, None] == model.bert.word_embedding.weight).all(-1).any(-1)
    assert rows.all()
    assert len(words.unique(dim=0)) == P


@BOTH
def test_trains_the_prompt_and_the_heads_alone(encoder, bert_dir):
    plain, model = tiny_model(bert_dir), prompted(bert_dir, encoder=encoder)
    own = {"embedding"} | ({f"encoder.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}
                           if encoder == "mlp" else set())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in plain.named_parameters() if not name.startswith("bert.")} | {
        f"bert.prompt.{name}" for name in own}
    assert set(plain.state_dict()) == {name for name in model.state_dict() if ".prompt." not in name}
    total(model, a_batch("sst", bert_dir)).backward()
    for name, p in model.bert.named_parameters():
        assert (p.grad is not None and p.grad.any().item()) == name.startswith("prompt."), name


@BOTH
@pytest.mark.parametrize("task", COURSE_TASKS)
def test_no_baseline_and_padding_changes_nothing(task, encoder, bert_dir):
    model, plain = prompted(bert_dir, encoder=encoder).eval(), tiny_model(bert_dir).eval()
    values = [forward_of(model, a_batch(task, bert_dir, extra)).logits for extra in (0, 3)]
    torch.testing.assert_close(*values)
    assert not torch.allclose(values[0], forward_of(plain, a_batch(task, bert_dir)).logits, atol=1e-5)


def test_a_text_may_be_as_long_as_ever(case):
    bert = case[0]
    assert bert(torch.ones(2, 20, dtype=torch.long), torch.ones(2, 20))["last_hidden_state"].shape == (2, 20, 24)


@BOTH
@pytest.mark.parametrize("other", [pals, task_layers, mixout, prefix])
@pytest.mark.parametrize("order", [1, -1])
def test_beside_other_techniques_the_prompt_counts_and_copies_and_checkpoints_keep_it(order, other, encoder, bert_dir):
    def build():
        model = tiny_model(bert_dir)
        for technique in (prompt, other)[::order]:
            technique(model.bert, **({"encoder": encoder} if technique is prompt else {}))
        pack_attention(model)
        return model
    model, batch = build().eval(), a_batch("sst", bert_dir)
    assert isinstance(model.bert, PromptedBert)
    before = forward_of(model, batch).logits
    for p in model.bert.prompt.parameters():
        p.data += torch.randn_like(p)
    after = forward_of(model, batch).logits
    assert not torch.allclose(before, after, atol=1e-5)
    assert forward_of(copy.deepcopy(model), batch).logits.equal(after)
    restored = build().eval()
    restored.load_state_dict(model.state_dict())
    assert forward_of(restored, batch).logits.equal(after)


def test_smart_perturbs_the_text_alone_and_dropout_reaches_the_prompt(bert_dir):
    model, batch = prompted(bert_dir), a_batch("sst", bert_dir)
    assert value_of(smart, model, dict(batch)) > 0
    dropping = prompted(bert_dir, dropout=0.5)
    dropping.bert.bert_layers.eval(), dropping.sentiment_head.eval()
    model.eval()
    x = model.bert.embed(batch["token_ids"])  # no dropout there
    states = [m.bert.encode(x, batch["attention_mask"]) for m in (model, dropping, dropping)]
    assert states[0].shape == x.shape and not any(a.equal(b) for a, b in zip(states, states[1:], strict=False))


@BOTH
def test_the_loss_falls_in_20_steps_of_bf16_without_waiting(encoder, bert_dir, monkeypatch):
    model, batch = prompted(bert_dir, encoder=encoder), a_batch("sst", bert_dir)
    model.bert.config.gradient_checkpointing = True
    pack_attention(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss():
        with torch.autocast("cpu", torch.bfloat16), no_waiting(monkeypatch):
            return total(model, batch)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.6 * losses[0]
    for name, p in model.bert.named_parameters():
        assert p.equal(before[f"bert.{name}"]) != name.startswith("prompt."), name


def test_wrong_options_are_named(bert_dir):
    with pytest.raises(ValueError, match="encoder must be one of none, mlp"):
        from_spec("prompt:encoder=lstm", ADAPT)
    with pytest.raises(ValueError, match="name it once"):
        prompt(prompted(bert_dir).bert)
    assert prompted(bert_dir, length=20).bert.prepended == 20
