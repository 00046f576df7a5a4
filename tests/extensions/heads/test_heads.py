"""Heads: shapes and values by hand, today's head as it was, sharing between tasks, checkpoints.

A head is new: there is no function to begin with, all of it is trained, and it sees no padding.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from extensions import HEADS, PAIR_FEATURES
from extensions.heads.heads import ACTIVATIONS
from extensions.specs import from_spec
from multitask_classifier import MultitaskBERT
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, task_batch


def build(bert_dir, **config):
    torch.manual_seed(0)
    return MultitaskBERT(SimpleNamespace(**{"pretrained": bert_dir, "option": "finetune", "hidden_dropout_prob": 0.0,
                                            "encoder_dropout_prob": 0.0, **config}))


def test_the_default_is_dropout_linear_leaky_relu_dropout_linear():
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 4), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(4, 2))
    torch.manual_seed(3)
    head = HEADS["mlp"](6, 4, 2, 0.2)
    assert repr(head) == repr(expected)
    assert all(a.equal(b) for a, b in zip(head.state_dict().values(), expected.state_dict().values(), strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", range(5))
def test_layers_by_hand(hidden, activation):
    head = from_spec(f"mlp:hidden={hidden},activation={activation}", HEADS)(6, 4, 2, 0.5).eval()
    linears = [part for part in head if isinstance(part, nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linears] == [
        *[(6 if i == 0 else 4, 4) for i in range(hidden)], (4 if hidden else 6, 2)]
    x = expected = torch.randn(3, 6)
    function = {"leaky-relu": nn.functional.leaky_relu, "none": lambda x: x, "tanh": torch.tanh,
                "rrelu": lambda x: nn.functional.leaky_relu(x, (1 / 8 + 1 / 3) / 2)}.get(
                    activation) or getattr(nn.functional, activation)
    for linear in linears[:-1]:
        expected = function(expected @ linear.weight.T + linear.bias)
    torch.testing.assert_close(head(x), expected @ linears[-1].weight.T + linears[-1].bias)


@pytest.mark.parametrize("hidden", range(1, 5))
def test_the_relational_head_is_the_mlp_in_a_trunk_and_an_output(hidden):
    """Also in training: the same seed drops the same numbers."""
    head, other = (HEADS[name](6, 4, 2, 0.3, hidden=hidden) for name in ("mlp", "relational"))
    trunk, *output = other
    parts = [*trunk, *output]
    assert [repr(part) for part in parts] == [repr(part) for part in head]
    for part, own in zip(parts, head, strict=True):
        part.load_state_dict(own.state_dict())
    x, outputs = torch.randn(8, 6), []
    for module in (head, other):
        torch.manual_seed(5)
        outputs.append(module(x))
    assert outputs[0].equal(outputs[1])


@pytest.mark.parametrize("name", HEADS)
def test_what_there_is_not(name):
    with pytest.raises(ValueError, match="hidden must be from [01] to 4"):
        from_spec(f"{name}:hidden=5", HEADS)
    with pytest.raises(ValueError, match="activation must be one of relu"):
        from_spec(f"{name}:activation=relu6", HEADS)


def test_the_relational_trunk_is_one_and_learns_from_both_tasks(bert_dir):
    model = build(bert_dir, heads={"sst": "mlp", "para": "relational:hidden=2", "sts": "relational:hidden=2"})
    assert model.paraphrase_head[0] is model.similarity_head[0]
    assert model.paraphrase_head[-1].weight is not model.similarity_head[-1].weight
    trunk = model.paraphrase_head[0][1].weight
    for task in ("para", "sts"):
        model.zero_grad()
        forward_of(model, task_batch(task, bert_dir)).logits.sum().backward()
        assert trunk.grad.abs().sum() > 0
    model.zero_grad()
    forward_of(model, task_batch("sst", bert_dir)).logits.sum().backward()
    assert trunk.grad is None

    other = build(bert_dir, heads={"sst": "mlp", "para": "relational:hidden=2", "sts": "relational:hidden=2"})
    nn.init.normal_(trunk)
    other.load_state_dict(model.state_dict())
    assert other.paraphrase_head[0] is other.similarity_head[0] and other.paraphrase_head[0][1].weight.equal(trunk)
    apart = build(bert_dir, heads="mlp:hidden=2")
    assert sum(p.numel() for p in apart.parameters()) > sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("spec", ["mlp:hidden=0", "mlp:hidden=4,activation=silu", "relational"])
@pytest.mark.parametrize("task", ["sst", "para"])
def test_loss_falls_in_20_steps(spec, task, bert_dir):
    model, batch = build(bert_dir, heads=spec), task_batch(task, bert_dir)
    losses = losses_of_20_steps(model, lambda: (
        forward_of(model, batch).logits.flatten()[:4] - torch.arange(4.0)).square().mean())
    assert losses[-1] < 0.7 * losses[0]


def test_pair_features_by_hand():
    u, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert PAIR_FEATURES["concat"](u, v).tolist() == [[1, 2, 3, -1, 2, 3]]
    assert PAIR_FEATURES["product"](u, v).tolist() == [[1, 2, 3, -1, 2, 3, 3, -2]]
    assert all(features(u, v).shape[1] == 2 * features.width for features in PAIR_FEATURES.values())


def test_the_product_reaches_the_head(bert_dir):
    model = build(bert_dir, pair_encoding="bi", pair_score={"para": "product", "sts": "concat"})
    assert model.paraphrase_head[1].in_features == 4 * 24 and model.similarity_head[1].in_features == 3 * 24
    batch = task_batch("para", bert_dir)
    u, v = forward_of(model, batch).encodings
    torch.testing.assert_close(forward_of(model, batch).logits, model.paraphrase_head(
        torch.cat([u, v, (u - v).abs(), u * v], dim=1)).squeeze(1))
