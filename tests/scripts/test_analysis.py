"""scripts/_analysis.py: similarity of layers, entropy and importance of heads and probes, on cases by hand."""

import math

import numpy as np
import pytest
import torch

from bert import BertSelfAttention
from engine.packed_attention import pack_attention
from extensions import TASK_LOSSES
from scripts._analysis import (
    attentions_of,
    entropy,
    gated_heads,
    head_entropies,
    head_importance,
    kept_heads,
    linear_cka,
    probe_accuracy,
    probe_correlation,
    pruning_order,
    sum_over_tokens,
)
from tasks import TASKS
from tests.helpers.fixtures_tiny import forward_of, inputs_of
from tests.helpers.regularizer_cases import CASES, a_batch, tiny_model


def test_cka_by_hand_and_its_invariances():
    x, y = torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    # y less its means is (2, -1), (-1, 2), (-1, -1), all by 3. x y is (1, -1), squared 2; x x is 2; y y is
    # ((6, -3), (-3, 6)) by 9, of norm sqrt(90) / 9.
    assert linear_cka(x, y) == pytest.approx(2 / (2 * math.sqrt(90) / 9), abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, n, generator=generator) for n in (6, 4))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    for same in (3 * x, x + 5, x @ rotation, x[:, [3, 1, 0, 2, 5, 4]]):
        assert linear_cka(x, same) == pytest.approx(1.0, abs=1e-5)
        assert linear_cka(same, y) == pytest.approx(linear_cka(y, x), abs=1e-5)
    assert 0 < linear_cka(x, y) < 0.5
    assert linear_cka(x, x * torch.tensor([9.0, 1, 1, 1, 1, 1])) < 0.95  # not under any linear map
    assert linear_cka(x, torch.ones(50, 2)) == 0.0
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert linear_cka(signs[:, :1], signs[:, 1:]) == 0.0


def test_entropy_of_uniform_and_of_certain():
    assert entropy(torch.full((3, 5), 0.2)).tolist() == pytest.approx([math.log(5)] * 3)
    assert entropy(torch.tensor([0.0, 1.0, 0.0])).item() == 0.0
    assert entropy(torch.tensor([0.5, 0.25, 0.25, 0.0])).item() == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize("packed", [False, True])
def test_heads_that_attend_to_all_have_the_entropy_of_the_number_of_tokens(packed, bert_dir):
    model = tiny_model(bert_dir).eval()
    attention = model.bert.bert_layers[0].self_attention
    D = attention.attention_head_size
    with torch.no_grad():  # of two heads the first has no queries, so that all keys look alike to it
        attention.query.weight[:D], attention.query.bias[:D] = 0, 0
        attention.query.weight[D:] *= 100
        attention.key.weight[D:] *= 100
    if packed:
        pack_attention(model)
    for extra in (0, 3):
        batch = a_batch("sst", bert_dir, extra)
        mask = batch["attention_mask"]
        with head_entropies(model.bert) as found:
            forward_of(model, batch).logits
        assert len(found) == 1 and found[0].shape == (4, 2, mask.shape[1])
        lengths = mask.sum(1)
        uniform, sharp = (sum_over_tokens(found[0], mask) / lengths.sum()).tolist()
        expected = ((lengths * lengths.float().log()).sum() / lengths.sum()).item()
        assert uniform == pytest.approx(expected, abs=1e-5) and 0 <= sharp < expected - 0.3
    assert not model.bert.bert_layers[0].self_attention._forward_hooks
    assert torch.nn.functional.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


def test_entropy_counts_what_another_technique_adds_to_the_scores(bert_dir):
    class Own(BertSelfAttention):
        def attention(self, key, query, value, attention_mask):
            return super().attention(key, 0 * query, value, attention_mask.masked_fill(
                torch.arange(key.shape[2]) > 1, -10000.0))  # two keys alike, no other

    model = tiny_model(bert_dir).eval()
    model.bert.bert_layers[0].self_attention.__class__ = Own
    with head_entropies(model.bert) as found:
        forward_of(model, a_batch("sst", bert_dir)).logits
    torch.testing.assert_close(found[0], torch.full_like(found[0], math.log(2)))


def planted(rows, seed):
    """Return features (rows, 6) with a class in the sign of one and a number in another, and both labels."""
    x = np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)
    return x, (x[:, 2] > 0).astype(int), 3 * x[:, 4] + 1


def test_probes_find_what_is_planted_and_nothing_in_noise():
    (x, classes, numbers), (dev, dev_classes, dev_numbers) = planted(800, 0), planted(800, 1)
    assert probe_accuracy(x, classes, dev, dev_classes) > 0.9
    assert probe_correlation(x, numbers, dev, dev_numbers) > 0.99
    noise, dev_noise = (np.random.default_rng(seed).normal(size=(800, 6)) for seed in (2, 3))
    assert probe_accuracy(noise, classes, dev_noise, dev_classes) == pytest.approx(0.5, abs=0.06)
    assert abs(probe_correlation(noise, numbers, dev_noise, dev_numbers)) < 0.1
    assert probe_correlation(np.zeros((9, 2)), numbers[:9], np.zeros((9, 2)), dev_numbers[:9]) == 0.0


def loss_of(task):
    return TASK_LOSSES[TASKS[task].loss]


@pytest.mark.parametrize("task, pair_encoding", CASES)
def test_importance_is_the_size_of_finite_differences_of_the_gate(task, pair_encoding, bert_dir):
    model = tiny_model(bert_dir, pair_encoding=pair_encoding).eval()
    batch = a_batch(task, bert_dir)
    rows = [{name: value[i : i + 1] if torch.is_tensor(value) else value for name, value in batch.items()}
            | {"sent_ids": ["x"]} for i in range(4)]
    importance = head_importance(model, task, map(inputs_of, rows), loss_of(task))
    assert [len(layer) for layer in importance] == [2] and (importance[0] > 0).all()
    if pair_encoding == "cross":  # of two sequences both have gates, and each counts by its size
        torch.testing.assert_close(head_importance(model, task, [inputs_of(batch)], loss_of(task)), importance)
    h = 1e-2
    for head in range(2):
        sizes = []
        for row in rows:
            values = []
            for step in (h, -h):
                gates = torch.ones(2)
                gates[head] += step
                with gated_heads(model.bert, lambda index, output, gates=gates: gates), torch.no_grad():
                    values.append(loss_of(task)(forward_of(model, row)).item())
            sizes.append(abs(values[0] - values[1]) / (2 * h))
        if pair_encoding == "cross":
            assert importance[0][head].item() == pytest.approx(np.mean(sizes), rel=5e-3)
        else:
            assert importance[0][head].item() >= np.mean(sizes) * (1 - 5e-3)


def test_gates_close_heads_and_leave_nothing_behind(bert_dir):
    model = tiny_model(bert_dir).eval()
    batch = a_batch("sst", bert_dir)
    before, attention = forward_of(model, batch).logits, attentions_of(model.bert)[0][0]
    with gated_heads(model.bert, lambda index, output: torch.ones(2)):
        assert forward_of(model, batch).logits.equal(before)
    with gated_heads(model.bert, lambda index, output: torch.tensor([1.0, 0.0])):
        pruned = forward_of(model, batch).logits
    D = attention.attention_head_size
    with torch.no_grad():  # the second head's values and their bias at 0
        attention.value.weight[D:], attention.value.bias[D:] = 0, 0
    torch.testing.assert_close(forward_of(model, batch).logits, pruned)
    assert not torch.allclose(pruned, before, atol=1e-4) and not attention._forward_hooks


def test_the_order_of_pruning():
    importance = torch.tensor([[3.0, 4.0], [0.06, 0.08], [0.0, 0.0]])  # by 5 and 0.1: .6 .8, .6 .8, and none
    order = pruning_order(importance)
    assert order[:2] == [(2, 0), (2, 1)] and set(order[2:4]) == {(0, 0), (1, 0)}
    assert [layer.tolist() for layer in kept_heads(order, 0.5)] == [
        [float((0, 0) not in order[:3]), 1.0], [float((1, 0) not in order[:3]), 1.0], [0.0, 0.0]]
    assert torch.cat(kept_heads(order, 0.0)).tolist() == [1.0] * 6 and not torch.cat(kept_heads(order, 1.0)).any()


def test_layers_may_have_unequal_numbers_of_heads():
    order = pruning_order([torch.tensor([3.0, 4.0, 0.0]), torch.tensor([2.0])])  # .6 .8 0, and 1
    assert order == [(0, 2), (0, 0), (0, 1), (1, 0)]
    assert [layer.tolist() for layer in kept_heads(order, 0.5)] == [[0.0, 1.0, 0.0], [1.0]]
