"""Focal loss: rows that are already right count less (Lin et al. 2017, https://arxiv.org/abs/1708.02002)."""

import torch

from extensions.technique import Technique


def focal(forward, gamma=2.0):
    """Return the mean of -(1 - p)^gamma log p, equation 4, with p the probability of the label.

    Of logits (B, K), or (B,) where z stands for the two classes (0, z). gamma=0 is cross-entropy. The mean is over
    all rows; the paper's class weights alpha are left out.
    """
    logits = forward.logits
    if logits.ndim == 1:
        logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)  # (B, 2)
    labels = forward.labels.long().unsqueeze(1)  # (B, 1)
    log_p = logits.log_softmax(dim=-1)  # (B, K)
    # log(1 - p) from the other classes: 1 - p itself is 0 in fp32 where p is near 1, and then has no gradient.
    log_rest = log_p.scatter(1, labels, -torch.inf).logsumexp(dim=-1)  # (B,)
    return -((gamma * log_rest).exp() * log_p.gather(1, labels).squeeze(1)).mean()


FOCAL = Technique(
    "focal", focal, paper="Lin et al. 2017, arxiv.org/abs/1708.02002",
    does="Cross-entropy in which rows that are already right count less.",
    use="When classes are unbalanced and easy rows dominate. No clear effect on a tenth of SST.",
    aka=("focal-loss",), kinds=("classes", "binary"))
