"""The plain task losses. A batch's `labels` are (B,); the logits come from `model.logits(batch)`."""

import torch.nn.functional as F


def ce(model, batch):
    """Return the mean cross-entropy of class logits (B, K) and int labels."""
    return F.cross_entropy(model.logits(batch).float(), batch["labels"])


def bce(model, batch):
    """Return the mean binary cross-entropy of one logit a row, (B,), and labels 0 or 1."""
    return F.binary_cross_entropy_with_logits(model.logits(batch).float(), batch["labels"].float())


def mse(model, batch):
    """Return the mean squared error of one score a row, (B,), and real labels."""
    return F.mse_loss(model.logits(batch).float(), batch["labels"].float())
