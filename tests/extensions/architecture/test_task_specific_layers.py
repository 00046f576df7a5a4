"""PALs, layers replicated per task, extra attention: identity, parameters, by hand, padding, training, checkpoints."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bert import BertLayer, BertModel
from config import BertConfig
from engine.packed_attention import pack_attention
from extensions import ADAPT
from extensions.architecture.pals import pals
from extensions.architecture.task_layers import TaskLayer
from extensions.specs import from_spec
from files.errors import UserError
from multitask_classifier import MultitaskBERT
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, task_batch, tiny_bert_dir

IDS = torch.tensor([[101, 950, 960, 102, 0], [101, 940, 930, 955, 102]])
MASK = (IDS != 0).long()
TASKS = ("sst", "para", "sts")
SPECS = ("pals:size=8,heads=2", "task-layers:top=1", "extra-attention:layers=2")


def build(bert_dir, *adapt, option="finetune", dropout=0.0):
    torch.manual_seed(0)
    return MultitaskBERT(SimpleNamespace(pretrained=bert_dir, option=option, hidden_dropout_prob=0.0,
                                         encoder_dropout_prob=dropout, adapt=list(adapt)))


def disturb(model, scale=0.3):
    """Move every parameter, so that nothing is zero any more."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn_like(p))
    return model


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_nothing_changes_at_first(spec, bert_dir):
    plain, adapted = build(bert_dir).eval(), build(bert_dir, spec).eval()
    for task in ("sst", "para", "sts"):
        torch.testing.assert_close(adapted(IDS, MASK, task=task), plain(IDS, MASK, task=task))


@pytest.mark.parametrize("spec, own", [
    (SPECS[0], {*(f"projections.{task}.{way}.weight" for task in TASKS for way in ("encode", "decode")),
                *(f"bert_layers.0.attentions.{task}.{name}.{part}" for task in TASKS
                  for name in ("query", "key", "value") for part in ("weight", "bias"))}),
    (SPECS[2], {f"bert_layers.{i}.{name}.{part}" for i in (1, 2) for part in ("weight", "bias") for name in (
        "output", *(f"self_attention.{projection}" for projection in ("query", "key", "value")))}),
])
def test_the_parameters(spec, own, bert_dir):
    plain = {name for name, _ in build(bert_dir).bert.named_parameters()}
    assert {name for name, _ in build(bert_dir, spec).bert.named_parameters()} == plain | own
    frozen = build(bert_dir, spec, option="pretrain").bert
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == own


def test_a_layer_for_each_task_has_three_times_the_parameters(bert_dir):
    plain, adapted = build(bert_dir).bert, build(bert_dir, "task-layers:top=1").bert
    layer = sum(p.numel() for p in plain.bert_layers[0].parameters())
    assert sum(p.numel() for p in adapted.parameters()) == sum(p.numel() for p in plain.parameters()) + 2 * layer
    disturb(adapted.bert_layers[0].by_task["para"])
    encoded = {task: adapted(IDS, MASK, task=task)["last_hidden_state"] for task in ("sst", "para", "sts")}
    assert encoded["sst"].equal(encoded["sts"]) and not torch.allclose(encoded["sst"], encoded["para"])


def test_as_many_layers_for_each_task_as_asked_for(tmp_path):
    deep = str(tiny_bert_dir(tmp_path, hidden_size=24, num_attention_heads=2, num_hidden_layers=3))
    bert, layer = build(deep, "task-layers:top=2").bert, build(deep).bert.bert_layers[0]
    assert [type(layer) for layer in bert.bert_layers] == [BertLayer, TaskLayer, TaskLayer]
    own = {f"bert_layers.{i}.by_task.{task}.{name}" for i in (1, 2) for task in TASKS
           for name, _ in layer.named_parameters()}
    plain = {name for name, _ in build(deep).bert.named_parameters()
             if not name.startswith(("bert_layers.1.", "bert_layers.2."))}
    assert {name for name, p in bert.named_parameters() if p.requires_grad} == plain | own
    frozen = build(deep, "task-layers:top=2", option="pretrain").bert
    assert not any(p.requires_grad for p in frozen.parameters())  # a copy is trained as far as the layer was


@pytest.mark.parametrize("spec", (SPECS[0], SPECS[2]))
@torch.no_grad()
def test_its_dropout_is_there_in_training_alone(spec, bert_dir):
    model = disturb(build(bert_dir, spec, dropout=0.5)).eval()
    assert model(IDS, MASK, task="sts").equal(model(IDS, MASK, task="sts"))
    layer = model.bert.bert_layers[-1]
    (layer.attentions if spec == SPECS[0] else layer.dropout).train()
    assert not torch.allclose(model(IDS, MASK, task="sts"), model(IDS, MASK, task="sts"))


def test_pals_have_the_papers_size():
    """Stickland and Murray: 1.13 times BERT-base's parameters for 8 tasks with projections of 204; here for 3."""
    with torch.device("meta"):
        bert = BertModel(BertConfig())
        plain = sum(p.numel() for p in bert.parameters())
        pals(bert)
    a_task = (sum(p.numel() for p in bert.parameters()) - plain) / 3
    assert bert.projections["sst"]["encode"].weight.shape == (204, 768)
    assert 1 + 8 * a_task / plain == pytest.approx(1.13, abs=0.005)


@torch.no_grad()
def test_pals_by_hand(bert_dir):
    bert = disturb(build(bert_dir, "pals:size=8,heads=2")).bert.eval()
    layer, x = bert.bert_layers[0], torch.randn(1, 3, 24)
    mask = torch.zeros(1, 1, 1, 3)
    own, projections = layer.attentions["sts"], bert.projections["sts"]
    z = x[0] @ projections["encode"].weight.T
    query, key, value = (z @ linear.weight.T + linear.bias for linear in (own.query, own.key, own.value))
    heads = [torch.softmax(query[:, i:i + 4] @ key[:, i:i + 4].T / 2, dim=1) @ value[:, i:i + 4] for i in (0, 4)]
    added = torch.cat(heads, dim=1) @ projections["decode"].weight.T
    attended = layer.attention_layer_norm(x + layer.attention_dense(layer.self_attention(x, mask)))
    expected = layer.out_layer_norm(attended + added + layer.out_dense(F.gelu(layer.interm_dense(attended))))
    torch.testing.assert_close(layer(x, mask, task="sts"), expected)


@torch.no_grad()
def test_extra_attention_by_hand(bert_dir):
    bert = disturb(build(bert_dir, "extra-attention")).bert.eval()
    layer, x, mask = bert.bert_layers[-1], torch.randn(1, 3, 24), torch.zeros(1, 1, 1, 3)
    attended = layer.self_attention(x, mask)
    torch.testing.assert_close(layer(x, mask), x + attended @ layer.output.weight.T + layer.output.bias)


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_padding_packed_attention_copies_and_checkpoints(spec, bert_dir):
    model = disturb(build(bert_dir, spec)).eval()
    for task in ("sst", "sts"):
        expected = model(IDS, MASK, task=task)
        torch.testing.assert_close(model(F.pad(IDS, (0, 4)), F.pad(MASK, (0, 4)), task=task), expected)
        other = build(bert_dir, spec).eval()
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(IDS, MASK, task=task), expected)
        torch.testing.assert_close(disturb(copy.deepcopy(model), 0.0)(IDS, MASK, task=task), expected)
        pack_attention(other)
        torch.testing.assert_close(other(IDS, MASK, task=task), expected)
    encoded = {task: model(IDS, MASK, task=task) for task in ("sst", "para")}
    assert torch.allclose(encoded["sst"], encoded["para"]) == spec.startswith("extra")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("task", ["sst", "para"])
def test_the_loss_falls_in_20_steps_and_the_new_parameters_move(spec, task, bert_dir):
    model, batch = build(bert_dir, spec), task_batch(task, bert_dir)
    plain = {name for name, _ in build(bert_dir).bert.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.bert.named_parameters() if name not in plain}
    losses = losses_of_20_steps(model, lambda: (
        forward_of(model, batch).logits.flatten()[:4] - torch.arange(4.0)).square().mean())
    assert losses[-1] < 0.7 * losses[0]
    moved = {name for name, p in model.bert.named_parameters() if name in before and not p.equal(before[name])}
    assert moved and all(other not in name for name in moved for other in {"sst", "para", "sts"} - {task})


@pytest.mark.parametrize("pair", [(SPECS[0], SPECS[2]), (SPECS[1], SPECS[2]), ("mixout", SPECS[0]),
                                  (SPECS[0], "mixout"), (SPECS[2], "extra-attention")])
def test_two_together_all_learn(pair, bert_dir):
    """No part of one is cut off by the other: after 20 steps on all tasks every parameter has moved."""
    model = build(bert_dir, *pair)
    before = {name: p.detach().clone() for name, p in model.bert.named_parameters()}
    batches = [task_batch(task, bert_dir) for task in TASKS]
    losses_of_20_steps(model, lambda: sum(
        (forward_of(model, batch).logits.flatten()[:4] - torch.arange(4.0)).square().mean() for batch in batches))
    still = {name for name, p in model.bert.named_parameters() if p.equal(before[name])}
    assert all("pooler" in name or "query.bias" in name or "key.bias" in name for name in still)


@pytest.mark.parametrize("pair", [(SPECS[0], SPECS[1]), (SPECS[1], SPECS[0]), (SPECS[2], SPECS[0]), (SPECS[0],) * 2,
                                  (SPECS[1],) * 2])
def test_what_does_not_go_together(pair, bert_dir):
    with pytest.raises(UserError, match=f"--adapt {pair[1]}.*plain layer"):
        build(bert_dir, *pair)


@pytest.mark.parametrize("spec", ["pals:size=7,heads=2", "task-layers:top=9", "task-layers:top=0"])
def test_what_cannot_be(spec, bert_dir):
    with pytest.raises(UserError, match=f"--adapt {spec}"):
        build(bert_dir, spec)
    with pytest.raises(ValueError, match="no 'loras'"):
        from_spec("loras", ADAPT)
