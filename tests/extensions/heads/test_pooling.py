"""Pooling: by hand on small numbers, what each starts from, padding, and that its parameters learn."""

from types import SimpleNamespace

import pytest
import torch

from extensions import POOLING
from extensions.heads.pooling import hidden_states_of
from multitask_classifier import MultitaskBERT
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, task_batch

BERT = SimpleNamespace(config=SimpleNamespace(hidden_size=2), bert_layers=[None] * 2)
STATES = torch.tensor([[[1.0, 5.0], [3.0, -1.0], [9.0, 9.0]], [[2.0, 2.0], [8.0, 8.0], [7.0, 7.0]]])  # (2, 3, 2)
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
OUTPUT = {"last_hidden_state": STATES, "pooler_output": torch.tensor([[0.5, 0.5], [0.1, 0.2]]),
          "hidden_states": [0 * STATES, 2 * STATES, STATES]}


@pytest.mark.parametrize("name, expected", [
    ("cls", [[1, 5], [2, 2]]), ("pooler", [[0.5, 0.5], [0.1, 0.2]]), ("mean", [[2, 2], [2, 2]]),
    ("max", [[3, 5], [2, 2]]), ("attention", [[2, 2], [2, 2]]),  # no query yet: the mean
])
def test_by_hand(name, expected):
    torch.testing.assert_close(POOLING[name](BERT)(OUTPUT, MASK), torch.tensor(expected, dtype=torch.float32))


def test_attention_by_hand():
    pooler = POOLING["attention"](BERT)
    pooler.query.data = torch.tensor([2**0.5 * torch.log(torch.tensor(3.0)), 0.0])  # scores log 3 · first component
    weights = torch.tensor([3.0, 27.0]) / 30
    torch.testing.assert_close(pooler(OUTPUT, MASK)[0], weights @ STATES[0, :2])
    torch.testing.assert_close(pooler(OUTPUT, MASK)[1], STATES[1, 0])


@pytest.mark.parametrize("name", ["mean", "attention", "layers"])
def test_autocast_changes_nothing(name):
    torch.manual_seed(0)
    pooler = POOLING[name](BERT)
    for p in pooler.parameters():
        torch.nn.init.normal_(p)
    expected = pooler(OUTPUT, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        assert pooler(OUTPUT, MASK).equal(expected)


def test_layers_by_hand():
    pooler = POOLING["layers"](BERT)
    # Twice 1 of 200 and once 198 of 200 (softmax of 0, 0, log 198): 2 / 200 + 198 / 200 of the last layer's mean.
    torch.testing.assert_close(pooler(OUTPUT, MASK), torch.full((2, 2), 2.0))
    pooler.scores.data, pooler.scale.data = torch.zeros(3), torch.tensor(3.0)
    torch.testing.assert_close(pooler(OUTPUT, MASK), torch.full((2, 2), 3.0 * (0 + 4 + 2) / 3))


@pytest.mark.parametrize("name", POOLING)
def test_a_row_of_padding_alone_gives_a_number(name):
    for enabled in (False, True):  # under autocast too a head gets fp32
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            pooled = POOLING[name](BERT)(OUTPUT, torch.zeros(2, 3, dtype=torch.long))
        assert pooled.isfinite().all() and pooled.dtype == torch.float32


def test_hidden_states_are_those_of_transformers_definition(bert_dir):
    """The embeddings' output, then each layer's, the last of which is the encoder's; no hook stays behind."""
    model = MultitaskBERT(SimpleNamespace(pretrained=bert_dir, option="finetune", hidden_dropout_prob=0.0)).eval()
    ids = torch.tensor([[101, 950, 960, 102]])
    with hidden_states_of(model.bert) as states:
        output = model.bert(ids, torch.ones_like(ids))
    assert len(states) == 1 + len(model.bert.bert_layers)
    assert states[0].equal(model.bert.embed(ids)) and states[-1].equal(output["last_hidden_state"])
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.bert.bert_layers)


@pytest.mark.parametrize("name", POOLING)
@pytest.mark.parametrize("task", ["sst", "sts"])
def test_learns_heeds_no_padding_and_has_its_parameters(name, task, bert_dir):
    torch.manual_seed(0)
    config = SimpleNamespace(pretrained=bert_dir, option="finetune", hidden_dropout_prob=0.0, encoder_dropout_prob=0.0,
                             pooling=name)
    model = MultitaskBERT(config)
    own = {key.split(".")[-1] for key, _ in model.pooling[task].named_parameters()}
    assert own == {"attention": {"query"}, "layers": {"scores", "scale"}}.get(name, set())

    batch = task_batch(task, bert_dir)
    before = [p.detach().clone() for p in model.pooling[task].parameters()]

    def loss():
        return (forward_of(model, batch).logits.flatten()[:4] - torch.arange(4.0)).square().mean()

    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.7 * losses[0]
    assert all(not p.equal(old) for p, old in zip(model.pooling[task].parameters(), before, strict=True))
    wider = {key: torch.nn.functional.pad(value, (0, 3)) if torch.is_tensor(value) and value.ndim == 2 else value
             for key, value in batch.items()}
    torch.testing.assert_close(forward_of(model.eval(), wider).logits, forward_of(model, batch).logits)


def test_layers_of_one_task_in_a_compiled_encoder(bert_dir):
    """Dynamo reuses for similarity what it has compiled for paraphrase, whichever hooks are there by then."""
    model = MultitaskBERT(SimpleNamespace(pretrained=bert_dir, option="finetune", hidden_dropout_prob=0.0, pooling={
        "sst": "mean", "para": "cls", "sts": "layers"})).eval()
    batches = [task_batch(task, bert_dir) for task in ("para", "sts", "sst", "sts", "para")]
    with torch.no_grad():
        expected = [forward_of(model, batch).logits for batch in batches]
        model.bert.compile(dynamic=True, backend="eager")
        for batch, logits in zip(batches, expected, strict=True):
            torch.testing.assert_close(forward_of(model, batch).logits, logits)
