"""How far two predictions for the same rows are apart, by the kind of the task."""

import torch
import torch.nn.functional as F


def symmetric_kl(logits, others):
    """Return the mean over rows of (KL(p, q) + KL(q, p)) / 2 of the softmax of logits (B, K) and (B, K)."""
    log_p, log_q = F.log_softmax(logits, dim=-1), F.log_softmax(others, dim=-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean() / 2


def divergence(task, logits, others):
    """Return the divergence of two logits of `task`: symmetric KL of classes, squared error of similarities.

    (B, K) for "sst"; (B,) for "para", where a logit z stands for the two classes (0, z); (B,) for "sts".
    """
    if task == "sts":
        return F.mse_loss(logits, others)
    if task == "para":
        logits, others = (torch.stack([torch.zeros_like(z), z], dim=-1) for z in (logits, others))
    return symmetric_kl(logits, others)
