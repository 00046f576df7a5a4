"""Perturbations of the embedding layer's output, where adversarial regularizers disturb a text.

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

from contextlib import contextmanager
from itertools import count

import torch

from files.errors import UserError


@contextmanager
def perturbed(bert, deltas, start):
    """Return the context in which the layers of `bert` get x + delta, x being the embedding layer's output (B, T, C).

    A model may call its encoder several times a batch: deltas[i] is for the i-th call, and calls beyond the list
    append start(x) to it. Padding is not perturbed.
    """
    encode, calls = bert.encode, count()

    def encode_perturbed(hidden_states, attention_mask, **options):
        i, mask = next(calls), attention_mask.unsqueeze(-1)  # (B, T, 1)
        if i == len(deltas):
            deltas.append((start(hidden_states.detach()) * mask).requires_grad_())
        return encode(hidden_states + deltas[i] * mask, attention_mask, **options)

    bert.encode = encode_perturbed
    try:
        yield
    finally:
        del bert.encode  # what remains is the method


def ascend(bert, start, value, move, steps=1):
    """Return the deltas of all encoder calls of value() after `steps` steps of gradient ascent on it.

    delta_0 = start(x) and delta_(n+1) = move(delta_n, gradient of value() with respect to it), both (B, T, C).
    """
    deltas = []
    for _ in range(steps):
        deltas = [delta.requires_grad_() for delta in deltas]
        with perturbed(bert, deltas, start):
            raised = value()
        if not deltas:
            raise UserError("smart and fgm perturb the encoder's input, but this batch holds its output, the features: "
                            "give them batches of texts")
        gradients = torch.autograd.grad(raised, deltas)
        deltas = [move(delta.detach(), gradient) for delta, gradient in zip(deltas, gradients, strict=True)]
    return deltas


def normalise(gradient, order, dim):
    """Return the gradient divided by its norm of that order over `dim`; where it is 0, it stays 0."""
    norm = torch.linalg.vector_norm(gradient, order, dim, keepdim=True)
    return gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny)
