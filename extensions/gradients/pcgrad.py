"""PCGrad, gradient surgery: what opposes another task is taken out of each task's gradient (Yu et al. 2020)."""

import torch

from extensions.gradients._task_gradients import TaskGradients
from extensions.technique import Technique


class PCGrad(TaskGradients):
    """For each task i, and each other task j in random order: where g_i^PC . g_j < 0,

        g_i^PC <- g_i^PC - (g_i^PC . g_j / ||g_j||^2) g_j         (g_i^PC = g_i at first)

    and the update takes the sum of the g_i^PC (https://arxiv.org/abs/2001.06782, algorithm 1). This is the projection
    onto the normal plane of g_j, the gradient as it was. The course handout's equation divides by the norm of g_i,
    which is no projection; this follows the paper. Only shared parameters take part.
    """

    def weights(self, gram, order):
        """Return the weights of the tasks' gradients in their combination, (K,)."""
        rows = torch.arange(len(gram), device=gram.device)
        coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # (K, K): g_i^PC = c_i G
        for j in order.T:  # (K,): the task that each task meets now
            inner = (coefficients * gram[j]).sum(dim=1)  # (K,): g_i^PC . g_j
            conflict = (inner < 0) & (j != rows)
            part = torch.where(conflict, inner / gram[j, j], torch.zeros_like(inner))
            coefficients[rows, j] -= part
        return coefficients.sum(dim=0)


PCGRAD = Technique(
    "pcgrad", PCGrad, paper="Yu et al. 2020, arxiv.org/abs/2001.06782",
    does="Takes out of each task's gradient what opposes another task's.",
    use="When tasks conflict (see the cosines in the log). No effect on a tenth of the rows (.000).",
    aka=("gradient-surgery", "surgery"), per_task=True)
