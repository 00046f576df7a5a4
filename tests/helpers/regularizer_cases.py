"""What the tests of the regularizers share: a tiny model, its batches, and one linear model small enough to do by hand.

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

from extensions import TASK_LOSSES
from multitask_classifier import MultitaskBERT
from tasks import COURSE_TASKS, TASKS
from tests.helpers.fixtures_tiny import forward_of, task_batch

# A task and how its pairs are encoded: "bi" calls the encoder several times a batch.
CASES = [("sst", "cross"), ("para", "cross"), ("para", "bi"), ("sts", "cross"), ("sts", "bi")]


def tiny_model(bert_dir, dropout=0.0, pair_encoding="cross", option="finetune", adapt=(), **more):
    """Return a tiny model in training mode, the same at every call."""
    torch.manual_seed(0)
    return MultitaskBERT(SimpleNamespace(
        pretrained=bert_dir, option=option, hidden_dropout_prob=dropout, encoder_dropout_prob=dropout, pooling="mean",
        pair_encoding=pair_encoding, adapt=list(adapt), **more)).train()


def a_batch(task, bert_dir, extra=0):
    """Return a batch of `task` with `extra` columns of padding more, and its task."""
    batch = task_batch(task, bert_dir)
    return {**{name: F.pad(value, (0, extra)) if torch.is_tensor(value) and value.ndim == 2 else value
               for name, value in batch.items()}}


def task_loss(model, batch, loss, penalties):
    """Return the loss fn(forward) of a test's batch with penalties, as a training step does."""
    forward = forward_of(model, batch, loss)
    return loss(forward) + sum(penalty(forward) for penalty in penalties)


def total(model, batch, *penalties):
    """Return the task's loss with penalties."""
    return task_loss(model, batch, loss_of(batch), penalties)


def loss_of(batch):
    """Return the loss of a test's batch, fn(forward): its own, or its task's default."""
    return batch.get("loss") or TASK_LOSSES[TASKS[batch["task"]].loss]


def value_of(penalty, model, batch):
    """Return the penalty alone, after a first pass."""
    forward = forward_of(model, batch, loss_of(batch))
    forward.loss(forward)
    return penalty(forward)


def reached(model, loss):
    """Return the names of the parameters that the loss has a gradient for."""
    names, params = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None}


@contextmanager
def no_waiting(monkeypatch):
    """Return the context in which reading a tensor's value on the host, which would wait for a GPU, fails."""
    def refuse(*_):
        raise AssertionError("a tensor's value was read on the host")
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, refuse)
        yield


class LinearModel(nn.Module):
    """logits = Wᵀ Σ_t x_t over real tokens t, x the "embeddings" of one encoder without layers; in float64."""

    def __init__(self, W):
        super().__init__()
        self.W, self.bert = nn.Parameter(W), LinearEncoder(len(W))

    def encode(self, task, batch):
        x = self.bert(batch["token_ids"], batch["attention_mask"])  # (B, T, C)
        return [(x * batch["attention_mask"].unsqueeze(-1)).sum(1)]

    def score(self, task, encodings):
        return (encodings[0] @ self.W).squeeze(-1)


class LinearEncoder(nn.Module):
    """The encoder's two seams: `embed` looks up, `encode` does nothing."""

    def __init__(self, C):
        super().__init__()
        self.word_embedding = nn.Embedding(7, C, dtype=torch.float64)

    def embed(self, input_ids):
        return self.word_embedding(input_ids)

    def encode(self, hidden_states, attention_mask):
        return hidden_states

    def forward(self, input_ids, attention_mask):
        return self.encode(self.embed(input_ids), attention_mask)


def by_hand(task, out_features):
    """Return (a LinearModel, a batch of two rows, the second with padding, and its loss in float64), C = 4, T = 3."""
    def loss(forward):
        if task == "sst":
            return F.cross_entropy(forward.logits, forward.labels)
        return F.mse_loss(forward.logits, forward.labels.double())

    torch.manual_seed(3)
    batch = {"task": task, "token_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
             "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]), "labels": torch.tensor([1, 0]),
             "loss": loss}
    return LinearModel(torch.randn(4, out_features, dtype=torch.float64)), batch


def same_noise(monkeypatch):
    """Let noise depend on the numbers that it is for alone, not on their place in a draw."""
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.cos(1000 * x))


__all__ = ["CASES", "COURSE_TASKS", "a_batch", "by_hand", "forward_of", "no_waiting", "reached", "same_noise",
           "task_loss", "tiny_model", "total", "value_of"]
