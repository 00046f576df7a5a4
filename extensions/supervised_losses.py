"""The plain task losses. A batch's `labels` are (B,); its `logits` are written back into it, for penalties."""

import torch.nn.functional as F


def ce(model, batch):
    """Return the mean cross-entropy of class logits (B, K) and int labels."""
    batch["logits"] = model.logits(batch).float()
    return F.cross_entropy(batch["logits"], batch["labels"])


def bce(model, batch):
    """Return the mean binary cross-entropy of one logit a row, (B,), and labels 0 or 1."""
    batch["logits"] = model.logits(batch).float()
    return F.binary_cross_entropy_with_logits(batch["logits"], batch["labels"].float())


def mse(model, batch):
    """Return the mean squared error of one score a row, (B,), and real labels."""
    batch["logits"] = model.logits(batch).float()
    return F.mse_loss(batch["logits"], batch["labels"].float())
