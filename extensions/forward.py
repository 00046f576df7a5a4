"""One forward pass of a batch: what losses and penalties are given, fn(forward) -> 0-dim."""

from functools import cached_property

import torch


class ForwardPass:
    """A batch's pass through a model: encodings and logits are computed when first asked for, then kept.

    `batch` is a dict with the keys of the contract, on the model's device; `loss` is the task's own, fn(forward), for
    penalties that need it. Legend:  B batch · C hidden size · K classes
    """

    def __init__(self, model, task, batch, loss=None):
        self.model, self.task, self.batch, self.loss = model, task, batch, loss
        self._logits = None

    @cached_property
    def encodings(self):
        """The batch's encodings: [(B, C)], or u and v, (B, C) each, of pairs encoded apart."""
        return self.model.encode(self.task, self.batch)

    @property
    def logits(self):
        """The task's logits (B, K) or (B,), in fp32 (or float64, where a model computes in it)."""
        if self._logits is None:
            logits = self.model.score(self.task, self.encodings)
            self._logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self._logits

    @property
    def labels(self):
        """The batch's labels, (B,)."""
        return self.batch["labels"]

    def again(self, batch=None, model=None):
        """Return another pass, with dropout of its own: of the same batch and model, or of those given."""
        return ForwardPass(model or self.model, self.task, self.batch if batch is None else batch, self.loss)

    def with_own_logits(self, loss):
        """Return one of several losses of this pass: it shares the encodings, but the head draws new dropout for it.

        The logits that it has read, if any, are then those of this pass.
        """
        before, self._logits = self._logits, None
        value = loss(self)
        if self._logits is None:
            self._logits = before
        return value
