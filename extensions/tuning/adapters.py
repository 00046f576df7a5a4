"""Bottleneck adapters: Houlsby et al. 2019, arxiv.org/abs/1902.00751; Pfeiffer et al. 2020, arxiv.org/abs/2005.00247.

Legend:  C hidden size · m size of the bottleneck
"""

import torch.nn as nn

from extensions.encoder import chosen_layers, freeze, overlay, replace_modules
from extensions.heads.heads import ACTIVATIONS
from extensions.technique import Layers, OneOf, Range, Technique


class Bottleneck(nn.Module):
    """f(x) = W_up φ(W_down x + b_down) + b_up, of 2 m C + m + C parameters, with W_up = b_up = 0 at first."""

    def __init__(self, bert, size, activation):
        super().__init__()
        C = bert.config.hidden_size
        self.down, self.activation, self.up = nn.Linear(C, size), ACTIVATIONS[activation](), nn.Linear(size, C)
        self.apply(bert._init_weights)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        """Map x (..., C) to (..., C)."""
        return self.up(self.activation(self.down(x)))


class AdapterDropout(nn.Module):
    """y + f(y) with y = dropout(x), the output of a sublayer: Houlsby's place, before the residual is added."""

    def __init__(self, dropout, adapter):
        super().__init__()
        self.dropout, self.adapter = dropout, adapter

    def forward(self, x):
        """Map x (B, T, C) to (B, T, C)."""
        y = self.dropout(x)
        return y + self.adapter(y)


class AdapterNorm:
    """LN(x + f(LN(x))) with x the feed-forward's output and its residual: Pfeiffer's place, to mix into a norm."""

    def forward(self, x):
        """Map x (B, T, C) to (B, T, C)."""
        return super().forward(x + self.adapter(super().forward(x)))


def adapters(bert, style="houlsby", size=64, activation="gelu", layers="all"):
    """Freeze the encoder and put a small two-layer network with a residual connection into each layer.

    style=houlsby: after both sublayers; the layer norms of these layers are trained too, and with layers=all that of
    the embeddings, as in the authors' code. style=pfeiffer: after the feed-forward alone, reading what the layer norm
    has made of it, which is applied once more after the adapter (the configuration of that name in AdapterHub, with
    activation=relu and size=C/16); the norms stay frozen. Houlsby et al. try sizes 8, 64 and 256. Where their W_down
    and W_up are of 0.001, here W_down is drawn as BERT's weights and W_up is 0: nothing changes until training.
    Raises ValueError where another technique has replaced the place.
    """
    chosen = {str(i) for i in chosen_layers(bert, layers)}
    freeze(bert)

    def within(name, *endings):
        return name.split(".")[0] in chosen and name.split(".")[-1] in endings

    def make(child):
        if type(child) is not nn.Dropout:
            raise ValueError(f"{type(child).__name__} is in the place of an adapter already: leave out one of the two")
        return AdapterDropout(child, Bottleneck(bert, size, activation))

    if style == "houlsby":
        replace_modules(bert.bert_layers, lambda name, _: within(name, "attention_dropout", "out_dropout"), make)
        for name, module in bert.named_modules():
            if hasattr(module, "weight_delta") and name.endswith("layer_norm"):
                raise ValueError("diff tunes the norms already: leave one of the two out, or choose style=pfeiffer")
            if (within(name.removeprefix("bert_layers."), "attention_layer_norm", "out_layer_norm")
                    or name == "embed_layer_norm" and layers == "all"):
                module.requires_grad_(True)
        return
    norms = [norm for name, norm in bert.bert_layers.named_modules() if within(name, "out_layer_norm")]
    if not norms or any(isinstance(norm, AdapterNorm) for norm in norms):
        raise ValueError("these layers have no feed-forward, or an adapter after it already")
    for norm in norms:
        overlay(norm, AdapterNorm, adapter=Bottleneck(bert, size, activation))


ADAPTERS = Technique(
    "adapters", adapters, paper="Houlsby et al. 2019, arxiv.org/abs/1902.00751; Pfeiffer et al. 2020, 2005.00247",
    does="Freezes the encoder; each layer gets a small network with a residual connection.",
    use="To train few weights: style=houlsby scored as full tuning on a tenth of the rows.",
    aka=("adapter", "bottleneck", "houlsby", "pfeiffer"), freezes=True,
    likely={"bottleneck": "size", "bottleneck_size": "size", "adapter_size": "size", "dim": "size", "m": "size",
            "reduction_factor": "size", "non_linearity": "activation", "type": "style"},
    valid={"style": OneOf(("houlsby", "pfeiffer")), "size": Range(1), "activation": OneOf(ACTIVATIONS),
           "layers": Layers()})
