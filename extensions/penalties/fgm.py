"""FGM, the fast gradient method on embeddings (Miyato, Dai and Goodfellow 2017, https://arxiv.org/abs/1605.07725).

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

import torch

from extensions.penalties._perturbation import ascend, normalise, perturbed
from extensions.technique import Technique


def fgm(forward, weight=1.0, epsilon=1.0):
    """Return weight · loss(x + r), r = epsilon g / ‖g‖₂ with g the gradient of the task's loss with respect to x.

    ‖g‖₂ is that of one text's x, (T, C), the paper's equation 5 (which has the sign of a log likelihood). x is the
    embedding layer's output with positions and layer norm, where the paper has normalised word embeddings: its epsilon
    of 5 there says nothing of the one here. g comes from a pass of its own, with dropout of its own.
    """
    def loss():
        return forward.loss(forward.again())

    bert = forward.model.bert
    deltas = ascend(bert, torch.zeros_like, loss, lambda _, g: epsilon * normalise(g, 2, (1, 2)))
    with perturbed(bert, deltas, torch.zeros_like):
        return weight * loss()


FGM = Technique(
    "fgm", fgm, paper="Miyato, Dai and Goodfellow 2017, arxiv.org/abs/1605.07725",
    does="Adds the loss under the change of the embeddings that raises it most.",
    use="When a long run overfits. No clear effect on a tenth of the rows, for 2.7 times the time.",
    aka=("fgsm", "adversarial-training"), likely={"eps": "epsilon", "lambda": "weight"}, reads_texts=True)
