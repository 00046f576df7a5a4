"""The encoder's other parts together: norm, feed-forward, attention and positions at once, and under --adapt."""

import copy
from functools import partial
from itertools import product

import pytest
import torch

from engine.fast_dropout import use_fast_dropout
from engine.packed_attention import pack_attention
from extensions.architecture.attention_heads import gqa
from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.extra_layers import extra_layers
from extensions.architecture.glu import geglu, swiglu
from extensions.architecture.layer_drop import layer_drop
from extensions.architecture.pals import pals
from extensions.architecture.positions import relative
from extensions.architecture.rmsnorm import rmsnorm
from extensions.architecture.rotary import rotary
from extensions.architecture.task_layers import task_layers
from extensions.tuning.adapters import adapters
from extensions.tuning.lora import LoRALinear, lora, merge
from extensions.tuning.mixout import MixLinear, mixout
from extensions.tuning.prefix import prefix
from tests.helpers.architecture_cases import (
    ATTENTION,
    FFN,
    IDS,
    MASK,
    NORM,
    POSITION,
    a_batch,
    check_checkpoint,
    check_learning,
    check_padding,
    disturb,
    states,
    tiny_model,
    total,
    with_parts,
)

PARTS = list(product(NORM, FFN, ATTENTION, POSITION))
ADAPT = (partial(pals, size=8, heads=2), task_layers, extra_attention, mixout, extra_layers, layer_drop, adapters,
         partial(prefix, length=2), partial(lora, rank=2, targets="query+key+value+attention-output+ffn"))


@pytest.mark.parametrize("norm, ffn, attention, positions", PARTS)
def test_every_combination(norm, ffn, attention, positions, bert_dir):
    """Each part makes a difference, the packed attention of the whole is the plain one, padding changes nothing."""
    parts = (norm, ffn, attention, positions)
    check_padding(bert_dir, *parts)
    check_checkpoint(bert_dir, *parts)
    model = disturb(with_parts(bert_dir, *parts))
    whole = states(model.bert)
    for i in range(len(parts)):
        rest = disturb(with_parts(bert_dir, *parts[:i], *parts[i + 1:]))
        assert not torch.allclose(states(rest.bert), whole, atol=1e-3)
    pack_attention(model), use_fast_dropout(model)
    torch.testing.assert_close(states(model.bert), whole)
    torch.testing.assert_close(states(copy.deepcopy(model).bert), whole)


def test_all_that_changes_nothing_at_first_together(bert_dir):
    plain = disturb(tiny_model(bert_dir)).bert
    model = copy.deepcopy(plain)
    for part in (partial(rmsnorm, recentre=True), geglu, partial(gqa, groups=2), relative, extra_layers,
                 partial(layer_drop, p=0.5), extra_attention):
        part(model)
    torch.testing.assert_close(states(model), states(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapt", ADAPT)
@pytest.mark.parametrize("parts", PARTS[::7])
def test_under_what_adapts(parts, adapt, bert_dir):
    model = with_parts(bert_dir, *parts, adapt)
    pack_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = total(model, a_batch("sts", bert_dir))
    loss.backward()
    trained = [p for p in model.bert.parameters() if p.requires_grad]
    assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in trained)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    names = {name.rpartition(".")[2] for name, module in model.bert.named_modules()
             if isinstance(module, (LoRALinear, MixLinear))}
    if adapt is mixout or getattr(adapt, "func", None) is lora:
        assert {"query", "key", "value", "attention_dense", "out_dense"} <= names
        assert "gate" in names or "interm_dense" in names
        assert "up" not in names or adapt is mixout  # new, and with LoRA trained whole
    options = {"task": "sts"} if getattr(model.bert, "takes_task", False) else {}
    again = copy.deepcopy(model).bert.eval()(IDS, MASK, **options)["last_hidden_state"]
    assert again.equal(model.bert.eval()(IDS, MASK, **options)["last_hidden_state"])


def test_lora_merges_into_the_gates(bert_dir):
    model = with_parts(bert_dir, rmsnorm, swiglu, partial(gqa, groups=1), rotary, partial(
        lora, rank=2, targets="key+ffn"))
    disturb(model, scale=0.1).double()
    before = states(model.bert)
    merge(model)
    torch.testing.assert_close(states(model.bert), before)


def test_training_all_at_once(bert_dir, monkeypatch):
    check_learning(bert_dir, rmsnorm, swiglu, partial(gqa, groups=1), relative, extra_layers, layer_drop,
                   monkeypatch=monkeypatch, checkpointing=True)
