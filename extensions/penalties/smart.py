"""SMART's smoothness-inducing adversarial term (Jiang et al. 2020, https://arxiv.org/abs/1911.03437, section 3.1).

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

import math

import torch

from extensions.penalties._divergence import smoothness
from extensions.penalties._perturbation import ascend, normalise, perturbed
from extensions.technique import OneOf, Technique

# name -> (order of the norm, the dimensions of (B, T, C) that it is taken over): a text's, or each token's own
NORMS = {"inf": (math.inf, (1, 2)), "l2": (2, (1, 2)), "inf-token": (math.inf, 2), "l2-token": (2, 2)}


def project(delta, norm, epsilon):
    """Return the point nearest to delta (B, T, C) in the ball of radius epsilon around 0."""
    order, dim = NORMS[norm]
    if order == math.inf:
        return delta.clamp(-epsilon, epsilon)
    length = torch.linalg.vector_norm(delta, order, dim, keepdim=True)
    return delta * (epsilon / length.clamp(min=epsilon))


def smart(forward, weight=1.0, steps=1, step_size=0.1, epsilon=0.1, sigma=0.01, norm="inf"):
    """Return weight · R_s, R_s = mean over rows of max_(‖delta‖ <= epsilon) l_s(f(x + delta), f(x)).

    x is the embedding layer's output. The maximum is sought as in the paper's algorithm 1: from noise
    delta ~ N(0, sigma²), `steps` times delta <- project(delta + step_size · g / ‖g‖), g the gradient of l_s with
    respect to delta with f(x) held fixed. `norm` serves projection and g alike: inf or l2 of a text, inf-token or
    l2-token of each token. With steps=0 it is the noise alone that f should not mind.

    l_s is the sum of the two KL divergences of classes, and the squared error of similarities; `weight` is the paper's
    lambda_s, 1 to 5 there. In training every pass draws dropout of its own, as in the authors' code. The paper's
    epsilon = sigma = 1e-5 and step_size = 1e-3 do nothing to x of the order of 1 (and are below what bf16 resolves; the
    authors' code rescales past them): on SST, with MiniLM after 60 steps, they move the logits by 0.0002 (l_s =
    0.00000), the defaults here by 0.28 (0.11), half their deviation over texts, noise of the same sigma by 0.003, and
    two dropout masks are 0.01 apart. norm=l2,epsilon=1,step_size=1 is as far.
    """
    def apart(from_logits):
        return smoothness(forward.task, from_logits, forward.again().logits)

    def noise(x):
        return sigma * torch.randn_like(x)

    def move(delta, gradient):
        return project(delta + step_size * normalise(gradient, *NORMS[norm]), norm, epsilon)

    logits, bert = forward.logits, forward.model.bert  # before anything is perturbed
    deltas = ascend(bert, noise, lambda: apart(logits.detach()), move, steps)
    with perturbed(bert, deltas, noise):
        return weight * apart(logits)


SMART = Technique(
    "smart", smart, paper="Jiang et al. 2020, section 3.1, arxiv.org/abs/1911.03437",
    does="Small adversarial changes of the input embeddings should not change the prediction.",
    use="When a long run overfits. No clear effect on a tenth of the rows, for 2.4 times the time.",
    aka=("adversarial", "vat"), valid={"norm": OneOf(NORMS)}, reads_texts=True,
    likely={"eps": "epsilon", "lambda": "weight", "lambda_s": "weight", "eta": "step_size", "lr": "step_size",
            "var": "sigma", "noise": "sigma", "num_steps": "steps", "norm_type": "norm"})
