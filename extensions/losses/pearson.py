"""Pearson's correlation as a loss: the measure by which similarities are scored."""

import torch

from extensions.technique import Technique


def pearson_loss(forward, weight=1.0):
    """Return 1 - r of one score a row, (B,), and real labels over the rows of the batch, times `weight`.

        r = Σ (x - x̄)(y - ȳ) / √(Σ (x - x̄)² Σ (y - ȳ)²)

    r is that of the rows at hand: of one part under --accumulate, of one process's share of several; it varies much in
    small batches. Scale and offset of the scores are left free, which correlation does not mind but a reader might:
    beside `mse` they are bound. Labels without spread, such as of one row, give 0 and no gradient. Scores whose
    standard deviation is below 1e-3 are taken to have that, so that equal ones have a finite gradient to leave by.
    """
    x, y = (values - values.mean() for values in (forward.logits, forward.labels.float()))  # (B,) each
    spread = forward.labels.amax() > forward.labels.amin()
    least = 1e-3 * len(x) ** 0.5
    norm_x, norm_y = torch.linalg.vector_norm(x).clamp(min=least), torch.linalg.vector_norm(y)
    r = (x * y).sum() / (norm_x * torch.where(spread, norm_y, 1.0))
    return weight * (1 - r) * spread


PEARSON = Technique(
    "pearson", pearson_loss, paper="Pearson 1895, Proceedings of the Royal Society 58",
    does="1 minus the correlation of scores and labels over the batch, by which similarity is scored.",
    use="Beside mse, with large batches. No clear effect on a tenth of the rows.",
    aka=("correlation", "pearsonr"), kinds=("real",), compares_rows=True)
