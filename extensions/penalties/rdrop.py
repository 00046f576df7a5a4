"""R-Drop: two passes with different dropout should agree (Liang et al. 2021, https://arxiv.org/abs/2106.14448)."""

from extensions.penalties._divergence import divergence
from extensions.technique import Technique


def rdrop(forward, weight=1.0):
    """Return what a second pass with another dropout mask adds to the loss.

    The paper's L = -log p(y) - log q(y) + weight (KL(p, q) + KL(q, p)) / 2, with p the first pass, whose loss the step
    has taken, and q the second. Similarities, which are no distribution, use their squared difference in place of the
    KL divergence. The step takes the time and the memory of two passes.
    """
    second = forward.again()
    return forward.loss(second) + weight * divergence(forward.task, forward.logits, second.logits)


RDROP = Technique(
    "rdrop", rdrop, paper="Liang et al. 2021, arxiv.org/abs/2106.14448",
    does="Two passes with different dropout masks should predict the same; both are trained.",
    use="Try it first, for twice the time: +.003 to +.007 on all rows, no clear effect on a tenth.",
    aka=("r-drop", "consistency"), likely={"alpha": "weight", "kl": "weight"})
