"""Regression and classification by the cosine of a pair's two encodings (Reimers and Gurevych 2019, section 3).

https://arxiv.org/abs/1908.10084. Both bear on the encoder alone: what a head makes of the encodings stays as it is.
"""

import torch

from extensions.losses._contrastive import positives
from tasks import TASKS


def cosine(forward, weight=1.0):
    """Return the mean of (cos(u, v) - target)², times `weight`: their regression objective.

    The target is similarity / 5, or 1 for a paraphrase and 0 for none. The model's logits are scale · cos(u, v) + bias;
    this loss leaves these two where they begin: at 5 · cos, so that the logits are on the labels' scale of 0 to 5, and
    for paraphrases at 10 · cos - 5, above 0 where the cosine is nearer to 1 than to 0. `mse` with the same head learns
    them, and counts 25 times as much to begin with.
    """
    u, v = forward.encodings  # (B, C) each
    target = forward.labels.float() / TASKS[forward.task].form.maximum
    return weight * (torch.cosine_similarity(u.float(), v.float()) - target).square().mean()


def cosine_embedding(forward, margin=0.0, threshold=2.5, weight=1.0):
    """Return the mean of 1 - cos(u, v) of alike and max(0, cos(u, v) - margin) of other pairs, times `weight`.

    torch's CosineEmbeddingLoss with the target 1 for paraphrases and similarities of at least `threshold`, by default
    the middle of their scale, and -1 for other pairs. An auxiliary loss for any head over the two encodings; alone it
    suits a cosine for the pair's score, as it trains no head.
    """
    u, v = forward.encodings  # (B, C) each
    cosines = torch.cosine_similarity(u.float(), v.float())  # (B,)
    return weight * torch.where(positives(forward, threshold), 1 - cosines, (cosines - margin).clamp(min=0)).mean()


cosine.tasks = cosine_embedding.tasks = ("para", "sts")
cosine.needs = {"pair_encoding": "bi", "pair_score": "cosine"}
cosine_embedding.needs = {"pair_encoding": "bi"}
cosine.trains_head = cosine_embedding.trains_head = False
