"""Mixout: dropout towards the pretrained weights instead of 0 (Lee, Cho and Kang 2020, arxiv.org/abs/1909.11299)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from files.errors import UserError

# Which weights share a draw: the outgoing ones of an input neuron (the paper's mixout), or none (its mixconnect).
UNITS = ("neuron", "weight")


class MixLinear(nn.Linear):
    """A linear layer over the parameters of an existing one; in training, with u its weight when this was made,

        w' = ((1 - m) u + m w - p u) / (1 - p),  m ~ Bernoulli(1 - p), so that the mean of w' is w
           = u + m / (1 - p) (w - u)

    serves for its weight w. The bias is not mixed, as in the authors' code. Checkpoint keys are as before: u is none.
    """

    def __init__(self, linear, p, unit):
        nn.Module.__init__(self)  # the parent's would draw new weights
        self.in_features, self.out_features, self.p, self.unit = linear.in_features, linear.out_features, p, unit
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("pretrained", linear.weight.detach().clone(), persistent=False)
        self.train(linear.training)

    def forward(self, x):
        """Map x (..., in_features) to (..., out_features)."""
        if not self.training or self.p == 0:
            return super().forward(x)
        ones = torch.ones_like(self.weight[:1] if self.unit == "neuron" else self.weight)  # (1 or out, in_features)
        kept = F.dropout(ones, self.p)  # m / (1 - p)
        return F.linear(x, torch.lerp(self.pretrained, self.weight, kept.detach()), self.bias)


def mixout(bert, p=0.1, unit="neuron"):
    """Replace every plain linear layer of `bert` by a `MixLinear`; its present weights are those mixed in.

    Layers that another technique adds are mixed with their first values, unless it comes afterwards. With --init they
    are mixed with the pretrained weights, not with those of that checkpoint. The paper has p
    of 0.7 to 0.9 in place of the encoder's dropout; in a frozen encoder nothing changes.
    """
    if not 0 <= p < 1:
        raise UserError(f"--adapt mixout:p={p}: give at least 0 and less than 1")
    if unit not in UNITS:
        raise UserError(f"--adapt mixout:unit={unit}: choose one of {', '.join(UNITS)}")
    for parent in list(bert.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, MixLinear(child, p, unit))
