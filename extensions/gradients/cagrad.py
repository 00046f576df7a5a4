"""CAGrad, conflict-averse gradient descent: near the mean gradient, the best for the worst task (Liu et al. 2021)."""

import torch

from extensions.gradients._task_gradients import TaskGradients
from extensions.technique import Range, Technique

ITERATIONS = 20  # one is enough for two tasks, about five are for three


class CAGrad(TaskGradients):
    """The direction d with the greatest min over k of g_k . d, among those with ||d - g_0|| <= c ||g_0||.

    g_0 is the mean of the g_k. By duality (https://arxiv.org/abs/2110.14048, section 3.1) d is

        d = g_0 + (c ||g_0|| / ||g_w||) g_w,    g_w = sum of w_k g_k,    w the minimiser on the simplex of
        F(w) = g_w . g_0 + c ||g_0|| ||g_w||

    The update takes K d: with c = 0 that is the plain sum, the baseline here, while the paper's losses are averaged.
    With nearly opposed gradients of very unequal length the steps may
    end somewhat short of the minimum. The authors' code has SciPy find w on the CPU; here it is found on the device.
    """

    def __init__(self, c=0.5):
        super().__init__()
        self.c = c

    def weights(self, gram, order):
        """Return the weights of the tasks' gradients in their combination, (K,)."""
        gram = gram / gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)  # what follows knows no scale
        radius = self.c * gram.mean().clamp(min=0).sqrt()  # c ||g_0||: ||g_0||^2 is the mean of all inner products
        w = worst_mixture(gram, radius)
        return 1 + len(gram) * radius * w / length(w, gram)


def length(w, gram):
    """Return ||g_w||, 0-dim, of w (K,), so that one may divide by it."""
    return (w @ gram @ w).clamp(min=torch.finfo(gram.dtype).tiny).sqrt()


def worst_mixture(gram, radius):
    """Return the w (K,) on the simplex that minimises F(w) = g_w . g_0 + radius ||g_w||.

    Each iteration moves weight from one task to another, by the exact step of the pair that gains most. With e the
    direction of a pair, F(w + t e) = g_w . g_0 + delta t + radius sqrt(m t^2 + 2 r t + q): of a convex F, in
    closed form. All pairs are tried at once, and nothing waits for the device.
    """
    K = len(gram)
    each = torch.eye(K, dtype=gram.dtype, device=gram.device)
    pairs = (each[:, None] - each).flatten(0, 1)  # (P, K), P = K²: from the second task to the first
    b, w = gram.mean(dim=1), torch.full_like(gram[0], 1 / K)  # (K,): g_k . g_0, and the mean of all
    delta, m = pairs @ b, ((pairs @ gram) * pairs).sum(dim=1)  # (P,)
    excess = radius**2 * m - delta**2  # without any, F falls (or rises) all along the step
    for _ in range(ITERATIONS):
        g = gram @ w  # (K,): g_k . g_w
        r, q = pairs @ g, w @ g
        t = -delta * ((q - r**2 / m).clamp(min=0) / (m * excess)).sqrt() - r / m
        t = torch.where(excess > 0, t, -delta.sign()).clamp(min=0).minimum(w.repeat(K))  # (P,): what may be moved
        F = delta * t + radius * (m * t**2 + 2 * r * t + q).clamp(min=0).sqrt()
        best = F.argmin(dim=0, keepdim=True)  # (1,)
        w = (w + (t[best, None] * pairs[best])[0]).clamp(min=0)
    return w


CAGRAD = Technique(
    "cagrad", CAGrad, paper="Liu et al. 2021, arxiv.org/abs/2110.14048",
    does="The step near the mean gradient that is best for the task which it helps least.",
    use="The one of these to try first: +.004 over the sum on a tenth of the rows, within the noise.",
    aka=("conflict-averse",), likely={"alpha": "c", "radius": "c"}, valid={"c": Range(below=1)}, per_task=True)
