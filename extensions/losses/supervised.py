"""The plain task losses: cross-entropy of classes, of two classes, mean squared error."""

import torch.nn.functional as F


def ce(forward, smoothing=0.0):
    """Return the mean cross-entropy of class logits (B, K) and int labels.

    With label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7) the target is
    (1 - smoothing) · onehot(y) + smoothing / K.
    """
    return F.cross_entropy(forward.logits, forward.labels, label_smoothing=smoothing)


def bce(forward):
    """Return the mean binary cross-entropy of one logit a row, (B,), and labels 0 or 1."""
    return F.binary_cross_entropy_with_logits(forward.logits, forward.labels.float())


def mse(forward):
    """Return the mean squared error of one score a row, (B,), and real labels."""
    return F.mse_loss(forward.logits, forward.labels.float())


ce.tasks, bce.tasks, mse.tasks = ("sst",), ("para",), ("sts",)
ce.bounds = {"smoothing": (0, 1)}
