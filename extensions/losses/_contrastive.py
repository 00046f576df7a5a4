"""What the losses over pairs of encodings share: which pairs are alike, all cosines, equal texts, the softmax."""

import torch
import torch.nn.functional as F

from tasks import TASKS


def positives(forward, threshold):
    """Return which pairs are alike, (B,) bool: paraphrases, and similarities of at least `threshold`."""
    return forward.labels >= (threshold if TASKS[forward.task].kind == "real" else 0.5)


def cosines(u, v):
    """Return the cosine of every row of u (N, C) and every row of v (M, C), in fp32 under autocast too: (N, M)."""
    with torch.autocast(u.device.type, enabled=False):
        return F.normalize(u.float(), dim=-1) @ F.normalize(v.float(), dim=-1).T


def pad_together(*sides):
    """Return token ids (N, T), (M, S), ... padded with 0 to one width."""
    width = max(ids.shape[1] for ids in sides)
    return [F.pad(ids, (0, width - ids.shape[1])) for ids in sides]


def same_text(token_ids, others):
    """Return which rows of token_ids (N, T) and others (M, S) are equal but for padding: (N, M) bool."""
    token_ids, others = pad_together(token_ids, others)
    return (token_ids.unsqueeze(1) == others).all(dim=-1)


def ranking(scores, masked, anchors):
    """Return the mean of -log softmax(scores)_ii over the rows i that are `anchors` (N,) bool; 0 if there are none.

    Of scores (N, M), M >= N, the columns are candidates and candidate i is row i's own. Those where `masked` (N, M) are
    no candidates for that row; its own always is.
    """
    own = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(masked & ~own, -torch.inf)
    losses = scores.logsumexp(dim=1) - scores.diagonal()  # (N,)
    return (losses * anchors).sum() / anchors.sum().clamp(min=1)
