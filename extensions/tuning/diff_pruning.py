"""Diff pruning: a sparse difference to the pretrained weights (Guo, Rush and Kim 2021, https://arxiv.org/abs/2012.07463).

The gates are hard concrete ones (Louizos, Welling and Kingma 2018, https://arxiv.org/abs/1712.01312).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from extensions.encoder import EncoderTechnique, attach, freeze, loaded_parameters, overlay
from extensions.technique import Range, Technique

LOW, HIGH = -1.5, 1.5  # the paper's l and r, to which a gate is stretched before it is cut to 0..1
OPEN = 5.0  # log alpha at the start: nearly every gate is 1


class Difference:
    """What a module with a weight and a bias becomes: both w + z delta, w frozen, delta learned, z drawn from a gate.

        z = min(1, max(0, s (r - l) + l)),  s = sigmoid(log u - log(1 - u) + alpha),  u ~ U(0, 1), in evaluation 1/2
        P(z > 0) = sigmoid(alpha - log(-l / r)) = sigmoid(alpha),  as l = -r

    With a gate alpha_g of the whole matrix or vector ("structured"), z is the product of both, and so is P(z > 0).
    """

    def difference(self, name):
        """Return z delta of the parameter of that name, like it."""
        return self.gate(f"{name}_gate") * self.gate(f"{name}_group") * self.get_parameter(f"{name}_delta")

    def alpha(self, name):
        """Return the gates' alpha: the parameter times `rate`, so that AdamW's steps are that much larger.

        The gradient is too, else AdamW's eps would hide so small a penalty; but not that of a whole matrix's gate, a
        sum over the matrix, by which all gradients would be clipped.
        """
        p = self.get_parameter(name)
        return p + (self.rate - 1) * p.detach() if name.endswith("_group") else self.rate * p

    def gate(self, name):
        """Return z, a value for each of the gates of that name; 1 without them."""
        if name not in self._parameters:
            return 1.0
        alpha = self.alpha(name)
        noise = torch.rand_like(alpha).logit(1e-6) if self.training else 0.0
        return (torch.sigmoid(alpha + noise) * (HIGH - LOW) + LOW).clamp(0, 1)

    def weights(self):
        """Return {"weight": w + z delta, "bias": likewise}."""
        return {name: getattr(self, name) + self.difference(name) for name in self.names}

    def expected(self):
        """Return the expected number of differences that are not 0, 0-dim."""
        groups = {name: self.alpha(f"{name}_group").sigmoid() if f"{name}_group" in self._parameters else 1.0
                  for name in self.names}
        return sum(groups[name] * self.alpha(f"{name}_gate").sigmoid().sum() for name in self.names)

    def found(self):
        """Return the number of differences that evaluation finds not to be 0, 0-dim; in evaluation mode."""
        return sum(self.difference(name).count_nonzero() for name in self.names)


class DiffLinear(Difference, nn.Linear):
    """A linear layer over w + z delta."""

    def forward(self, x):
        """Map x (..., in_features) to (..., out_features)."""
        return F.linear(x, **self.weights())


class DiffLayerNorm(Difference, nn.LayerNorm):
    """A layer norm over w + z delta."""

    def forward(self, x):
        """Normalise x (..., C)."""
        return F.layer_norm(x, self.normalized_shape, eps=self.eps, **self.weights())


KINDS = {nn.Linear: DiffLinear, nn.LayerNorm: DiffLayerNorm}


class L0(EncoderTechnique):
    """The loss and the report of all differences of an encoder: penalty E[number of differences that are not 0]."""

    def __init__(self, penalty):
        self.penalty = penalty

    def of_weights(self, model):
        """Return the loss, 0-dim."""
        return self.penalty * sum(module.expected() for module in modules_of(model))

    @torch.no_grad()
    def report(self, model):
        """Return a line: how many weights differ from those loaded."""
        modules = modules_of(model)
        modes = [module.training for module in modules]
        count = sum(int(module.eval().found()) for module in modules)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        of = sum(module.get_parameter(name).numel() for module in modules for name in module.names)
        whole = sum(p.numel() for p in loaded_parameters(getattr(model, "bert", model)))
        return (f"diff: {count:,} of {of:,} weights differ from the pretrained ones, {count / of:.2%} of them and "
                f"{count / whole:.2%} of the encoder's")


def modules_of(model):
    """Return the modules of a model that have differences, a list."""
    return [module for module in model.modules() if isinstance(module, Difference)]


def diff_pruning(bert, penalty=1.25e-7, rate=2000.0, structured=True):
    """Freeze what was loaded of `bert` and learn a difference, with gates, to every linear layer and layer norm.

    The loss gets `penalty` for every difference that is expected not to be 0; the gates learn `rate` times as fast as
    the rest. Defaults are the authors' code's: a rate of 0.1 for gates beside 5e-5, which is --lr's default here too:
    at a tenth of it the gates hardly move, and a few hundred steps at twice that rate close nearly all of them. As
    delta = 0 at the start, so is the whole difference. Where the paper then keeps the largest differences, a given
    share, and trains on under that mask, here the gates' own evaluation decides, so that the share follows from
    `penalty`, and the report after every scoring tells it. Embeddings stay as loaded; every pass draws gates anew.
    Not merged: a checkpoint holds differences and gates. Memory of a weight of these layers: 36 bytes in training (w,
    two numbers to learn, gradients and moments of both) where full fine-tuning takes 16, and 12 in evaluation, beside
    the gates of a pass.
    Layers that other techniques have replaced are left out; raises ValueError when no linear layer is left.
    """
    loaded = {id(p) for p in loaded_parameters(bert)}
    chosen = [module for module in bert.modules() if type(module) in KINDS and id(module.weight) in loaded]
    if not any(type(module) is nn.Linear for module in chosen):
        raise ValueError("nothing is left for it: another technique has taken the place of all linear layers")
    freeze(bert)
    if any(p.requires_grad for module in chosen for p in module.parameters()):
        raise ValueError("another technique tunes biases or norms as they are: leave one of the two out")
    for module in chosen:
        names = [name for name in ("weight", "bias") if getattr(module, name) is not None]
        overlay(module, KINDS[type(module)], rate=rate, names=names)
        for name in module.names:
            p = module.get_parameter(name)
            module.register_parameter(f"{name}_delta", nn.Parameter(torch.zeros_like(p)))
            module.register_parameter(f"{name}_gate", nn.Parameter(torch.full_like(p, OPEN / rate)))
            if structured:
                module.register_parameter(f"{name}_group", nn.Parameter(p.new_full((), OPEN / rate)))
    attach(bert, L0(penalty))


DIFF = Technique(
    "diff", diff_pruning, paper="Guo, Rush and Kim 2021, arxiv.org/abs/2012.07463",
    does="Freezes the encoder; learns a sparse difference to its weights.",
    use="For a small difference file, in long runs. rate fits the steps: 350 for 324 gave .667.",
    aka=("diff-pruning", "sparse"), likely={"l0": "penalty", "lambda": "penalty", "weight": "penalty"},
    valid={"rate": Range(above=0)}, learning_rate=5e-5)
