"""Regression and classification by the cosine of a pair's two encodings (Reimers and Gurevych 2019, section 3).

https://arxiv.org/abs/1908.10084. Both bear on the encoder alone: what a head makes of the encodings stays as it is.
"""

import torch

from extensions.losses._contrastive import positives
from extensions.technique import Technique
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


COSINE = Technique(
    "cosine", cosine, paper="Reimers and Gurevych 2019, section 3, arxiv.org/abs/1908.10084",
    does="Squared error between the cosine of a pair's two encodings and its label.",
    use="For similarity alone: +.040 there, the other tasks lost .012, on a tenth of the rows.",
    aka=("cosine-similarity", "cossim"), kinds=("binary", "real"), pairs_only=True,
    needs={"pair_encoding": "bi", "pair_score": "cosine"}, trains_head=False)
COSINE_EMBEDDING = Technique(
    "cosine-embedding", cosine_embedding, paper="Reimers and Gurevych 2019, section 3, arxiv.org/abs/1908.10084",
    does="Pulls encodings of alike pairs together and pushes others apart, up to a margin.",
    use="Beside mse, if at all: with weight 0.5 it hurt on a tenth of the rows (.669, base .691).",
    aka=("contrastive",), kinds=("binary", "real"), pairs_only=True, needs={"pair_encoding": "bi"}, trains_head=False)
