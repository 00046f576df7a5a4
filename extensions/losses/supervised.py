"""The plain task losses. A batch's `labels` are (B,); its `logits` are written back into it, for penalties."""

import torch.nn.functional as F


def ce(model, batch, smoothing=0.0):
    """Return the mean cross-entropy of class logits (B, K) and int labels.

    With label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7) the target is
    (1 - smoothing) · onehot(y) + smoothing / K.
    """
    batch["logits"] = model.logits(batch).float()
    return F.cross_entropy(batch["logits"], batch["labels"], label_smoothing=smoothing)


def bce(model, batch):
    """Return the mean binary cross-entropy of one logit a row, (B,), and labels 0 or 1."""
    batch["logits"] = model.logits(batch).float()
    return F.binary_cross_entropy_with_logits(batch["logits"], batch["labels"].float())


def mse(model, batch):
    """Return the mean squared error of one score a row, (B,), and real labels."""
    batch["logits"] = model.logits(batch).float()
    return F.mse_loss(batch["logits"], batch["labels"].float())


ce.tasks, bce.tasks, mse.tasks = ("sst",), ("para",), ("sts",)
ce.bounds = {"smoothing": (0, 1)}
