"""Every task loss in training: a tiny BERT learns by it; padding, bf16, which parameters it trains, no waits.

Of the five tests that a technique owes, "the exact set of trainable parameters" is here what the loss's gradient
reaches, as none but the ordinal output has parameters; "identity at initialisation", the oracles and the cases by hand
are in test_class_losses.py, test_pair_losses.py and test_contrastive_losses.py.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from engine.losses import total_loss
from extensions import TASK_LOSSES
from extensions.specs import from_spec
from multitask_classifier import MultitaskBERT
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, task_batch

CROSS, BI, COSINE = {}, {"pair_encoding": "bi"}, {"pair_encoding": "bi", "pair_score": "cosine"}
CASES = [  # loss, task, what the model is, whether the loss trains the task's head
    ("ce:smoothing=0.1", "sst", CROSS, True), ("one-versus-rest", "sst", CROSS, True), ("focal", "sst", CROSS, True),
    ("ordinal", "sst", {"outputs": {"sst": "ordinal"}}, True), ("focal", "para", CROSS, True),
    ("cosine", "sts", COSINE, False), ("cosine", "para", COSINE, False), ("cosine-embedding", "sts", COSINE, False),
    ("cosine-embedding", "para", BI, False), ("pearson", "sts", CROSS, True), ("pearson", "sts", COSINE, True),
    ("mnrl", "para", BI, False), ("mnrl:symmetric=true", "sts", COSINE, False), ("simcse", "sst", CROSS, False),
    ("simcse", "sts", BI, False), ("simcse-supervised", "para", BI, False),
    ("simcse-supervised:symmetric=true", "sts", BI, False)]
ONE_EACH = list({case[0].partition(":")[0]: case for case in CASES}.values())
HEADS = {"sst": "sentiment_head", "para": "paraphrase_head", "sts": "similarity_head"}


@pytest.fixture
def build(bert_dir):
    """Return a function that makes (a model in training mode, a batch of `task` with labels far apart)."""
    def build(task, config, dropout=0.0):
        torch.manual_seed(0)
        model = MultitaskBERT(SimpleNamespace(pretrained=bert_dir, option="finetune", hidden_dropout_prob=dropout,
                                              encoder_dropout_prob=dropout, **config)).train()
        batch = task_batch(task, bert_dir)
        if task == "sts":
            batch["labels"] = 5 * batch["labels"]
        return model, batch
    return build


@pytest.mark.parametrize("spec, task, config, trains_head", ONE_EACH)
def test_the_loss_falls_in_20_steps(spec, task, config, trains_head, build):
    model, batch = build(task, config, dropout=0.1)
    loss_of = from_spec(spec, TASK_LOSSES)
    losses = losses_of_20_steps(model, lambda: loss_of(forward_of(model, batch)))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("spec, task, config, trains_head", CASES)
def test_padding_does_not_change_the_value(spec, task, config, trains_head, build):
    model, batch = build(task, config)
    wider = {name: F.pad(value, (0, 3)) if torch.is_tensor(value) and value.ndim == 2 else value
             for name, value in batch.items()}
    loss_of = from_spec(spec, TASK_LOSSES)
    torch.testing.assert_close(loss_of(forward_of(model, wider)), loss_of(forward_of(model, batch)))


@pytest.mark.parametrize("spec, task, config, trains_head", CASES)
def test_it_trains_the_encoder_and_only_what_computes_logits_the_head(spec, task, config, trains_head, build):
    model, batch = build(task, config, dropout=0.1)
    from_spec(spec, TASK_LOSSES)(forward_of(model, batch)).backward()
    expected = {name for name, p in model.bert.named_parameters(prefix="bert")
                if not name.startswith("bert.pooler") and p.requires_grad}
    if trains_head:
        expected |= {name for name, _ in getattr(model, HEADS[task]).named_parameters(prefix=HEADS[task])}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == expected
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("spec, task, config, trains_head", CASES)
def test_bf16_gives_a_loss_in_fp32(spec, task, config, trains_head, build):
    model, batch = build(task, config)
    loss_of = from_spec(spec, TASK_LOSSES)
    exact = loss_of(forward_of(model, batch))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(forward_of(model, batch))
        assert loss.dtype == torch.float32
        # From the same encodings it is the same to the last digits: nothing of the loss itself is in bf16.
        given = forward_of(model, batch).encodings
        model.encode = lambda task, batch: given
        inside = loss_of(forward_of(model, batch))
    torch.testing.assert_close(inside, loss_of(forward_of(model, batch)))
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.3)


@pytest.mark.parametrize("spec, task, config, trains_head", CASES)
def test_no_value_decides_what_is_computed(spec, task, config, trains_head):
    """CUDA graphs hold such losses: tensors without values go through them, where `if tensor` or .item() fails."""
    with FakeTensorMode():
        with pytest.raises(DataDependentOutputException):
            torch.ones(3).sum().item()
        features = [torch.randn(4, 24, requires_grad=True) for _ in range(1 if task == "sst" else 2)]
        logits = torch.randn(*((4, 5) if task == "sst" else (4,)), requires_grad=True)
        model = SimpleNamespace(encode=lambda task, batch: features, score=lambda task, encodings: logits)
        ids = {f"token_ids{side}": torch.ones(4, 7, dtype=torch.int64)
               for side in ([""] if task == "sst" else ["_1", "_2"])}
        batch = {"task": task, "labels": torch.ones(4, dtype=torch.int64), **ids}
        loss = from_spec(spec, TASK_LOSSES)(forward_of(model, batch))
        loss.backward()
        assert loss.shape == () and loss.dtype == torch.float32


@pytest.mark.parametrize("spec", ["mnrl:weight=0.1", "simcse-supervised:weight=0.1", "cosine-embedding:weight=0.1"])
def test_an_auxiliary_loss_shares_the_pass(spec, build):
    model, batch = build("para", BI, dropout=0.1)
    forward, passes = forward_of(model, batch), []
    model.bert.register_forward_hook(lambda *_: passes.append(1))
    loss = TASK_LOSSES["bce"](forward)
    taken = len(passes)
    auxiliary = forward.with_own_logits(from_spec(spec, TASK_LOSSES))
    assert len(passes) == taken > 0 and auxiliary > 0
    (loss + auxiliary).backward()
    assert forward.logits.shape == (4,) and len(passes) == taken


def test_each_of_several_losses_draws_dropout_of_the_head_for_itself(build):
    """As two passes of the head over one pass of the encoder do; penalties then compare the last one's logits."""
    model, batch = build("sts", CROSS, dropout=0.3)
    seen = []
    specs = ["mse", "pearson"]
    torch.manual_seed(1)
    forward = forward_of(model, batch)
    total = total_loss(specs)(forward)
    torch.manual_seed(1)
    encodings = model.encode("sts", batch)
    for spec in specs:
        logits = model.score("sts", encodings)
        given = SimpleNamespace(encode=lambda task, batch: [], score=lambda task, _, logits=logits: logits)
        seen.append((from_spec(spec, TASK_LOSSES)(forward_of(given, batch)), logits))
    assert total.equal(seen[0][0] + seen[1][0]) and not seen[0][1].equal(seen[1][1])
    assert forward.logits.equal(seen[1][1])


def test_two_views_need_dropout(build):
    """With it a second pass is another view; without, both are one, and a text is its own nearest."""
    for dropout in (0.1, 0.0):
        model, batch = build("sst", CROSS, dropout)
        seen = []
        encode = model.encode
        model.encode = lambda task, batch: seen.append(encode(task, batch)[0]) or [seen[-1]]
        TASK_LOSSES["simcse"](forward_of(model, batch))
        assert len(seen) == 2 and seen[0].equal(seen[1]) == (dropout == 0)
