"""Whole layers over those that were loaded, which change nothing until they are trained."""

import copy

import torch
import torch.nn as nn

from bert import BertLayer
from extensions.technique import OneOf, Range, Technique


class GatedLayer(nn.Module):
    """h + a (layer(h) - h), with a = 0 at the start: ReZero (Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887).

    The paper's h + a F(h) has the gate on a residual branch; here F(h) = layer(h) - h, so that a = 1 is the plain
    layer. At first only a has a gradient; after a step a is not 0, and the layer has one too.
    """

    tokenwise = True  # it treats tokens one by one: see engine/unpadded.py

    def __init__(self, layer):
        super().__init__()
        self.layer, self.gate = layer, nn.Parameter(torch.zeros(1, device=layer.out_dense.weight.device))

    def forward(self, hidden_states, attention_mask, task=None):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C)."""
        return torch.lerp(hidden_states, self.layer(hidden_states, attention_mask, task=task).to(hidden_states.dtype),
                          self.gate.to(hidden_states.dtype))


def plain_copy(layer):
    """Return a `BertLayer`, all of it trainable, over copies of what a layer of whichever class has of one's parts."""
    new = BertLayer.__new__(BertLayer)
    nn.Module.__init__(new)
    for name in ("self_attention", "attention_dense", "attention_layer_norm", "attention_dropout", "interm_dense",
                 "interm_af", "out_dense", "out_layer_norm", "out_dropout"):
        setattr(new, name, copy.deepcopy(getattr(layer, name)))
    return new.requires_grad_(True).train(layer.training)


def extra_layers(bert, n=1, start="copy"):
    """Append `n` layers to the encoder, each behind a gate that is closed at first.

    start=copy: their parts are copies of the top layer's, with what techniques named before have made of them;
    start=fresh: with newly drawn weights. They are trained whole, in a frozen encoder too. The copies of a layer per
    task are those of the last task's, and what PALs add is not copied.
    """
    top = [module for module in bert.bert_layers.modules() if isinstance(module, BertLayer)][-1]
    for _ in range(n):
        layer = plain_copy(top)
        if start == "fresh":
            layer.apply(bert._init_weights)
        bert.bert_layers.append(GatedLayer(layer).train(top.training))


EXTRA_LAYERS = Technique(
    "extra-layers", extra_layers, paper="Bachlechner et al. 2020, arxiv.org/abs/2003.04887",
    does="Whole layers over the loaded ones, behind a gate that is closed at first.",
    use="With many rows. No clear effect on a tenth of the rows.",
    aka=("rezero", "more-layers"), likely={"layers": "n", "init": "start"},
    valid={"n": Range(1), "start": OneOf(("copy", "fresh"))})
