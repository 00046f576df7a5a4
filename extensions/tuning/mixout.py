"""Mixout: dropout towards the pretrained weights instead of 0 (Lee, Cho and Kang 2020, arxiv.org/abs/1909.11299)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from extensions.technique import OneOf, Range, Technique


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

    unit=neuron: the outgoing weights of an input neuron share a draw (the paper's mixout); unit=weight: none do (its
    mixconnect).

    Layers that another technique adds are mixed with their first values, unless it comes afterwards. With --init they
    are mixed with the pretrained weights, not with those of that checkpoint. The paper has p
    of 0.7 to 0.9 in place of the encoder's dropout; in a frozen encoder nothing changes.
    """
    for parent in list(bert.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, MixLinear(child, p, unit))


MIXOUT = Technique(
    "mixout", mixout, paper="Lee, Cho and Kang 2020, arxiv.org/abs/1909.11299",
    does="Dropout of weights towards their pretrained values instead of 0.",
    use="When fine-tuning few rows is unstable. No clear effect on a tenth of the rows.",
    aka=("dropconnect", "mixconnect"), likely={"dropout": "p", "prob": "p", "rate": "p"},
    valid={"p": Range(below=1), "unit": OneOf(("neuron", "weight"))})
