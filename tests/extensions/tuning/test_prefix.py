"""Prefix-tuning: keys and values before each layer's own, equal to transformers' cache and peft's MLP."""

import copy

import pytest
import torch

from bert import BertModel
from config import BertConfig
from engine.fast_dropout import use_fast_dropout
from engine.packed_attention import PackedSelfAttention, pack_attention
from extensions.architecture.attention_heads import gqa
from extensions.architecture.positions import alibi, relative
from extensions.architecture.rotary import rotary
from extensions.architecture.task_layers import task_layers
from extensions.tuning.prefix import PrefixedSelfAttention, prefix
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps
from tests.helpers.oracle import run_oracle
from tests.helpers.regularizer_cases import COURSE_TASKS, a_batch, no_waiting, tiny_model, total

# All sizes differ, so that no mix-up of dimensions goes unseen.
SMALL = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 40, "max_position_embeddings": 20, "layer_norm_eps": 1e-6}
P, T = 5, 7
BOTH = pytest.mark.parametrize("reparameterize", [False, True])


def prefixed(bert_dir, dropout=0.0, **options):
    """Return a tiny model with a prefix far from 0 in its encoder, the same at every call."""
    model = tiny_model(bert_dir, dropout)
    prefix(model.bert, **{"length": P, "hidden": 6, **options})
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".prefix." in name:
                p.add_(torch.randn_like(p))
    return model


ORACLE = """
import torch
from peft import PrefixEncoder, PrefixTuningConfig
from transformers import BertConfig, BertModel, DynamicCache

torch.manual_seed(1)
model = BertModel(BertConfig(**small)).eval()
encoder = PrefixEncoder(PrefixTuningConfig(
    peft_type="PREFIX_TUNING", task_type="FEATURE_EXTRACTION", num_virtual_tokens=P, token_dim=24, num_layers=3,
    num_attention_heads=4, num_transformer_submodules=1, encoder_hidden_size=6, prefix_projection=reparameterize))
B, T = input_ids.shape
with torch.no_grad():
    flat = encoder(torch.arange(P).expand(B, -1)).view(B, P, 6, 4, 6).permute(2, 0, 3, 1, 4)  # (2 L, B, H, P, D)
    cache = DynamicCache([(flat[2 * l], flat[2 * l + 1]) for l in range(3)])
    output = model(input_ids, torch.cat([torch.ones(B, P), attention_mask], 1), past_key_values=cache,
                   position_ids=torch.arange(T).expand(B, -1))
result = {"bert": model.state_dict(), "encoder": encoder.state_dict(), "last_hidden_state": output.last_hidden_state}
"""


@BOTH
def test_the_encoder_equals_transformers_with_the_prefix_of_peft_as_a_cache(reparameterize):
    input_ids = torch.arange(1, 22).view(3, T)
    mask = (torch.arange(T) < torch.tensor([[T], [1], [4]])).long()
    oracle = run_oracle(ORACLE, small=SMALL, P=P, reparameterize=reparameterize, input_ids=input_ids,
                        attention_mask=mask)
    bert = BertModel.from_pretrained("", config=BertConfig(**SMALL), state_dict=oracle["bert"])
    prefix(bert, length=P, reparameterize=reparameterize, hidden=6)
    theirs, C = oracle["encoder"], SMALL["hidden_size"]
    for i, layer in enumerate(bert.bert_layers):
        part, columns = layer.self_attention.prefix, slice(2 * i * C, 2 * (i + 1) * C)
        if reparameterize:
            part.embedding.weight.data = theirs["embedding.weight"]
            part.hidden.load_state_dict({"weight": theirs["transform.0.weight"], "bias": theirs["transform.0.bias"]})
            part.output.load_state_dict({"weight": theirs["transform.2.weight"][columns],
                                         "bias": theirs["transform.2.bias"][columns]})
        else:
            part.key.data, part.value.data = theirs["embedding.weight"][:, columns].chunk(2, dim=1)
    for packed in (False, True):
        if packed:
            pack_attention(bert)
        ours = bert(input_ids, mask)["last_hidden_state"]
        torch.testing.assert_close(ours, oracle["last_hidden_state"], rtol=0, atol=1e-5)


@BOTH
def test_trains_the_prefix_and_the_heads_alone(reparameterize, bert_dir):
    plain, model = tiny_model(bert_dir), prefixed(bert_dir, reparameterize=reparameterize)
    own = {"embedding.weight", "hidden.weight", "hidden.bias", "output.weight", "output.bias"} if reparameterize else {
        "key", "value"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in plain.named_parameters() if not name.startswith("bert.")} | {
        f"bert.bert_layers.0.self_attention.prefix.{name}" for name in own}
    assert set(plain.state_dict()) < set(model.state_dict())
    total(model, a_batch("sst", bert_dir)).backward()
    for name, p in model.bert.named_parameters():
        assert (p.grad is not None and p.grad.any().item()) == (".prefix." in name), name


@pytest.mark.parametrize("task", COURSE_TASKS)
def test_no_baseline_and_padding_changes_nothing(task, bert_dir):
    model, plain = prefixed(bert_dir).eval(), tiny_model(bert_dir).eval()
    values = [forward_of(model, a_batch(task, bert_dir, extra)).logits for extra in (0, 3)]
    torch.testing.assert_close(*values)
    assert not torch.allclose(values[0], forward_of(plain, a_batch(task, bert_dir)).logits, atol=1e-3)


def test_a_row_by_hand(bert_dir):
    """One query in float64: softmax over P + T scores, of which the mask takes back those of padding alone."""
    attention = prefixed(bert_dir).bert.bert_layers[0].self_attention.double()
    H, D = 2, 12
    key, query, value = (torch.randn(1, H, 3, D, dtype=torch.float64) for _ in range(3))
    mask = torch.tensor([0.0, 0.0, -10000.0]).double().view(1, 1, 1, 3)
    out = attention.attention(key, query, value, mask).view(1, 3, H, D)
    for h in range(H):
        part = slice(h * D, (h + 1) * D)
        keys = torch.cat([attention.prefix.key[:, part], key[0, h, :2]])
        values = torch.cat([attention.prefix.value[:, part], value[0, h, :2]])
        by_hand = (query[0, h, 1] @ keys.T / D**0.5).softmax(-1) @ values
        torch.testing.assert_close(out[0, 1, h], by_hand)


def test_heads_that_share_keys_and_values_share_their_prefix():
    """Of 4 heads in 2 groups, head h has the prefix of group h // 2."""
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SMALL))
    gqa(bert, groups=2)
    prefix(bert, length=P)
    attention = bert.bert_layers[0].self_attention
    assert attention.prefix.key.shape == (P, 12)
    key, query, value = (torch.randn(1, 4, 3, 6) for _ in range(3))
    out = attention.eval().attention(key, query, value, torch.zeros(1, 1, 1, 3)).view(1, 3, 4, 6)
    for h in range(4):
        part = slice(h // 2 * 6, h // 2 * 6 + 6)
        keys, values = (torch.cat([p[:, part], own[0, h]]) for p, own in (
            (attention.prefix.key, key), (attention.prefix.value, value)))
        torch.testing.assert_close(out[0, :, h], (query[0, h] @ keys.T / 6**0.5).softmax(-1) @ values)


@BOTH
@pytest.mark.parametrize("first", [gqa, relative, rotary, alibi, task_layers])
def test_beside_other_techniques_the_prefix_counts_and_copies_and_checkpoints_keep_it(first, reparameterize, bert_dir):
    def build():
        model = tiny_model(bert_dir)
        first(model.bert, **{"groups": 1} if first is gqa else {})
        prefix(model.bert, length=P, reparameterize=reparameterize, hidden=6)
        pack_attention(model)
        return model
    model, batch = build(), a_batch("sst", bert_dir)
    before = forward_of(model, batch).logits
    for attention in model.bert.modules():
        if isinstance(attention, PrefixedSelfAttention):
            assert isinstance(attention, PackedSelfAttention)
            for p in attention.prefix.parameters():
                p.data += torch.randn_like(p)
    after = forward_of(model, batch).logits
    assert not torch.allclose(before, after, atol=1e-3)
    assert forward_of(copy.deepcopy(model), batch).logits.equal(after)
    restored = build()
    restored.load_state_dict(model.state_dict())
    assert forward_of(restored, batch).logits.equal(after)


def test_copied_layers_train_prefixes_of_their_own(bert_dir):
    model = prefixed(bert_dir, reparameterize=True)
    task_layers(model.bert)
    reached = {}
    for task in COURSE_TASKS:
        model.zero_grad()
        total(model, a_batch(task, bert_dir)).backward()
        reached[task] = {name for name, p in model.bert.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached[task] and all(f"by_task.{task}." in name for name in reached[task])
    assert len({len(names) for names in reached.values()}) == 1


def test_dropout_falls_on_the_prefix_too_and_gradient_checkpointing_changes_nothing(bert_dir):
    model, batch = prefixed(bert_dir, dropout=0.5), a_batch("sst", bert_dir)
    use_fast_dropout(model)
    grads = []
    for checkpointing in (False, True):
        model.bert.config.gradient_checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(1)
        total(model, dict(batch)).backward()
        grads.append(model.bert.bert_layers[0].self_attention.prefix.key.grad.clone())
    torch.testing.assert_close(*grads)


@BOTH
def test_the_loss_falls_in_20_steps_of_bf16_without_waiting(reparameterize, bert_dir, monkeypatch):
    model, batch = prefixed(bert_dir, reparameterize=reparameterize), a_batch("sst", bert_dir)
    pack_attention(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss():
        with torch.autocast("cpu", torch.bfloat16), no_waiting(monkeypatch):
            return total(model, batch)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.6 * losses[0]
    for name, p in model.bert.named_parameters():
        assert p.equal(before[f"bert.{name}"]) != (".prefix." in name), name


def test_it_begins_as_small_as_the_weights_of_bert(bert_dir):
    bert = tiny_model(bert_dir).bert
    prefix(bert, length=200)
    own = bert.bert_layers[0].self_attention.prefix
    assert [p.std().item() for p in (own.key, own.value)] == pytest.approx([bert.config.initializer_range] * 2, rel=0.1)


def test_named_twice_or_after_packing(bert_dir):
    bert = tiny_model(bert_dir).bert
    prefix(bert)
    assert bert.bert_layers[0].self_attention.prefix.key.shape == (20, 24)
    packed = tiny_model(bert_dir).bert
    pack_attention(packed)
    for given in (bert, packed):
        with pytest.raises(ValueError, match="name it once, and pack afterwards"):
            prefix(given)
