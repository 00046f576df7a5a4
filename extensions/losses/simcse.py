"""SimCSE, unsupervised and supervised (Gao et al. 2021, https://arxiv.org/abs/2104.08821).

Negatives are those of the part (--accumulate) and of this process. Neither loss trains a head. The encoding is the
task's pooled one, without the paper's extra layer on [CLS].
"""

import torch

from extensions.losses._contrastive import cosines, pad_together, positives, ranking, same_text
from extensions.technique import Range, Technique


def unsupervised_simcse(forward, temperature=0.05, weight=1.0):
    """Return how badly a text finds its encoding under another dropout mask among all texts', times `weight`.

        mean of -log exp(cos(h_i, h'_i) / temperature) / Σ_j exp(cos(h_i, h'_j) / temperature)        (equation 4)

    Of pairs both texts count, N = 2 B of them, and labels play no part; the other text of a pair, which may well mean
    the same, and equal texts are no negatives. It takes a second pass, in training mode: without dropout, h' = h, each
    text is its own nearest and what is left to the loss is to push different texts apart.
    """
    views = [torch.cat(view.encodings) for view in (forward, forward.again())]  # (N, C) each
    sides = [forward.batch[name] for name in ("token_ids", "token_ids_1", "token_ids_2") if name in forward.batch]
    texts = torch.cat(pad_together(*sides))  # (N, T)
    partners = torch.eye(len(sides[0]), dtype=torch.bool, device=texts.device).repeat(len(sides), len(sides))  # (N, N)
    everyone = torch.ones(len(texts), dtype=torch.bool, device=texts.device)
    return weight * ranking(cosines(*views) / temperature, same_text(texts, texts) | partners, everyone)


def supervised_simcse(forward, temperature=0.05, symmetric=False, hard_negatives=True, threshold=4.0, weight=1.0):
    """Return how badly a text finds its paraphrase among the batch's paraphrases and hard negatives, times `weight`.

    Equation 5, with positives from labels: the pairs of paraphrases, or of similarities of at least `threshold`. The
    paper's triplets have a contradiction to every premise; here both texts of all other pairs in the batch are the
    hard negatives of every anchor. `symmetric` adds, at equal parts, the same from second to first texts. Equal
    texts are masked as in `mnrl`, but the second text of a pair labelled as not alike stays where the first is shared.
    """
    u, v = forward.encodings  # (B, C) each
    first, second = forward.batch["token_ids_1"], forward.batch["token_ids_2"]
    alike = positives(forward, threshold)

    def one_way(u, v, first, second):
        scores = cosines(u, torch.cat([v, u])) / temperature  # (B, 2B): to second texts, then to first ones
        answer, itself = same_text(second, torch.cat(pad_together(second, first))), same_text(first, first)
        masked = torch.cat([same_text(first, second) | (itself & alike), itself | alike], dim=1) | answer
        if not hard_negatives:
            masked = masked | ~alike.repeat(2)
        return ranking(scores, masked, alike)

    loss = one_way(u, v, first, second)
    if symmetric:
        loss = (loss + one_way(v, u, second, first)) / 2
    return weight * loss


SIMCSE = Technique(
    "simcse", unsupervised_simcse, paper="Gao et al. 2021, arxiv.org/abs/2104.08821",
    does="A text should find its own encoding under another dropout mask among the batch's texts.",
    use="Beside a task's own loss, for better encodings. No clear effect on a tenth of SST.",
    aka=("unsupervised-simcse", "contrastive-learning"), likely={"tau": "temperature", "scale": "temperature"},
    valid={"temperature": Range(0.001)}, kinds=("classes", "binary", "real"), needs={"pair_encoding": "bi"},
    trains_head=False, reads_texts=True, compares_rows=True)
SUPERVISED_SIMCSE = Technique(
    "simcse-supervised", supervised_simcse, paper="Gao et al. 2021, arxiv.org/abs/2104.08821",
    does="A text should find its paraphrase among the batch's paraphrases and hard negatives.",
    use="Beside bce, with two encodings. No clear effect with weight 0.1 on a tenth of the rows.",
    aka=("supervised-simcse",), likely={"tau": "temperature", "scale": "temperature"},
    valid={"temperature": Range(0.001)}, kinds=("binary", "real"), pairs_only=True, needs={"pair_encoding": "bi"},
    trains_head=False, reads_texts=True, compares_rows=True)
