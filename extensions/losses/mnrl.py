"""Multiple negatives ranking (Henderson et al. 2017, https://arxiv.org/abs/1705.00652, section 4.4)."""

from extensions.losses._contrastive import cosines, positives, ranking, same_text
from extensions.technique import Technique


def mnrl(forward, scale=20.0, symmetric=False, threshold=4.0, weight=1.0):
    """Return how badly first texts find their own second text among all of the batch, times `weight`.

        mean over alike pairs i of -log exp(s_ii) / Σ_j exp(s_ij),  s_ij = scale · cos(u_i, v_j)

    The paper's score is a dot product; the scaled cosine is Sentence-BERT's, as is `symmetric`, the mean with the
    same for second texts among the first. Pairs that are not alike, by label or by a similarity below `threshold`,
    are candidates but ask for none. A candidate j is left out for i where it cannot be told from a right answer: if the
    pairs i and j share a first or a second text, or v_j is the text of u_i. A batch without alike pairs gives 0.
    In-batch negatives are those of the part (--accumulate) and of this process. The head is not trained: as a task's
    only loss it suits a cosine for the pair's score.
    """
    u, v = forward.encodings  # (B, C) each
    first, second = forward.batch["token_ids_1"], forward.batch["token_ids_2"]
    scores = scale * cosines(u, v)  # (B, B)
    masked = same_text(first, first) | same_text(second, second) | same_text(first, second)  # (B, B)
    anchors = positives(forward, threshold)
    loss = ranking(scores, masked, anchors)
    if symmetric:
        loss = (loss + ranking(scores.T, masked.T, anchors)) / 2
    return weight * loss


MNRL = Technique(
    "mnrl", mnrl, paper="Henderson et al. 2017, section 4.4, arxiv.org/abs/1705.00652",
    does="A text should find its own second text among all of the batch.",
    use="Beside bce, with large batches. No clear effect with weight=0.1 on a tenth of the rows.",
    aka=("multiple-negatives", "multiple-negatives-ranking", "infonce"), likely={"temperature": "scale"},
    kinds=("binary", "real"), pairs_only=True, needs={"pair_encoding": "bi"}, trains_head=False, reads_texts=True,
    compares_rows=True)
