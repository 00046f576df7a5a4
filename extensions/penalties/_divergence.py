"""How far two predictions for the same rows are apart, by the kind of the task."""

import torch
import torch.nn.functional as F

from tasks import TASKS


def symmetric_kl(logits, others):
    """Return the mean over rows of (KL(p, q) + KL(q, p)) / 2 of the softmax of logits (B, K) and (B, K)."""
    log_p, log_q = F.log_softmax(logits, dim=-1), F.log_softmax(others, dim=-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean() / 2


def divergence(task, logits, others):
    """Return the divergence of two logits of `task`: symmetric KL of classes, squared error of real numbers.

    (B, K) of classes; (B,) of a binary task, where a logit z stands for the two classes (0, z); (B,) of real numbers.
    """
    if TASKS[task].kind == "real":
        return F.mse_loss(logits, others)
    if TASKS[task].kind == "binary":
        logits, others = (torch.stack([torch.zeros_like(z), z], dim=-1) for z in (logits, others))
    return symmetric_kl(logits, others)


def smoothness(task, logits, others):
    """Return SMART's l_s (Jiang et al. 2020, section 3.1), the mean over rows of logits shaped as in `divergence`.

    Of classes it is the sum of both KL divergences, not their mean; of real numbers the squared error.
    """
    return divergence(task, logits, others) * (1 if TASKS[task].kind == "real" else 2)
