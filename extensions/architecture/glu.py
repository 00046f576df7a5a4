"""Gated linear units in the feed-forward (Shazeer 2020, https://arxiv.org/abs/2002.05202), and a narrower feed-forward.

Legend of the shape comments:  C hidden size · W width of the feed-forward
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from extensions.technique import Technique

SIGMOID_SLOPE = 1.702  # gelu(x) ≈ x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, section 2)


class GatedLinear(nn.Module):
    """activation(gate(x)) · up(x): what a GLU has for the first linear layer and the activation.

    `gate` is the pretrained layer and `up` = 0 x + c: the product starts as c activation(gate(x)). Zeros are no dead
    start: the gradient of up's weights is (dL/dy · activation(gate(x))) xᵀ, which is 0 for no neuron that is active,
    and the pretrained gates tell the neurons apart.
    """

    def __init__(self, gate, activation, c):
        super().__init__()
        self.gate, self.activation = gate, activation
        self.up = nn.Linear(gate.in_features, gate.out_features, device=gate.weight.device, dtype=gate.weight.dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.constant_(self.up.bias, c)
        self.up.is_new = True  # and trained whole: there is nothing for LoRA and its like to adapt

    def forward(self, x):
        """Map x (..., C) to (..., W)."""
        return self.activation(self.gate(x)) * self.up(x)


def as_it_is(x):
    """Return x: the activation after a `GatedLinear`, which has its own."""
    return x


@torch.no_grad()
def narrow(layer, width):
    """Keep the `width` neurons of a layer's feed-forward whose outgoing weights have the largest norms; 0 keeps all.

    The parameters stay the same objects. Raises ValueError when there are not so many, or not in two linear layers.
    """
    interm, out = layer.interm_dense, layer.out_dense
    if not (type(interm) is type(out) is nn.Linear and layer.interm_af is F.gelu):
        raise ValueError("the feed-forward is not as it was loaded any more: another technique has taken its place")
    if not 0 <= width <= interm.out_features:
        raise ValueError(f"width={width}: this encoder's feed-forward has {interm.out_features} neurons; give fewer, "
                         "or 0 for all")
    if 0 < width < interm.out_features:
        kept = out.weight.norm(dim=0).topk(width).indices.sort().values
        interm.weight.data, interm.bias.data = interm.weight[kept], interm.bias[kept]  # (W, C), (W,)
        out.weight.data = out.weight[:, kept]  # (C, W)
        interm.out_features = out.in_features = width


def gate_feed_forwards(bert, width, activation, scale, c):
    """Make every layer's feed-forward out(activation(scale · gate(x)) · up(x)), with up = c at the start."""
    for layer in bert.bert_layers:
        narrow(layer, width)
        with torch.no_grad():
            layer.interm_dense.weight.mul_(scale)
            layer.interm_dense.bias.mul_(scale)
        layer.interm_dense, layer.interm_af = GatedLinear(layer.interm_dense, activation, c), as_it_is


def gelu(bert, width=0):
    """Narrow the feed-forward of `bert` to `width` neurons, those of the largest outgoing weights; 0 leaves it alone.

    Of the 1,536 of MiniLM 1,152 change the last hidden states of 64 sentences of SST by 59 % (the norm of the change
    over theirs), 768 by 78 % and 384 by 99 %. Norms of the incoming weights, and products of both, choose worse.
    """
    for layer in bert.bert_layers:
        narrow(layer, width)


def geglu(bert, width=0):
    """Gate the feed-forward of `bert`: out(gelu(W x + b) · (V x + c)), with V = 0 and c = 1 at the start.

    With the pretrained W and b that is the pretrained function exactly. The paper takes 2/3 of the width, so that
    three matrices have the parameters of two, and no biases; here width 0 is the pretrained width, which makes the
    feed-forward's parameters half as many again, and biases stay. Another `width` narrows it as `gelu` does.
    """
    gate_feed_forwards(bert, width, F.gelu, 1.0, 1.0)


def swiglu(bert, width=0):
    """Gate the feed-forward of `bert` by SiLU: out(silu(W' x + b') · (V x + c)), with V = 0 at the start.

    W' = 1.702 W, b' = 1.702 b and c = 1 / 1.702 give z sigmoid(1.702 z) for the pretrained gelu(z), z = W x + b. The
    two differ by 0.020 at most, near z = ±2.27; on MiniLM the last hidden states of 64 sentences of SST change by
    8 % (cosine 0.997). Paper and width as for `geglu`.
    """
    gate_feed_forwards(bert, width, F.silu, SIGMOID_SLOPE, 1 / SIGMOID_SLOPE)


LIKELY = {"size": "width", "intermediate_size": "width", "hidden": "width", "dim": "width"}
GELU = Technique(
    "gelu", gelu, paper="Hendrycks and Gimpel 2016, arxiv.org/abs/1606.08415",
    does="BERT's feed-forward; with width=N its N neurons of the largest outgoing weights.",
    use="The default. Half the width is faster and cost .034 on a tenth of the rows (.657).",
    aka=("ffn", "default"), likely=LIKELY)
GEGLU = Technique(
    "geglu", geglu, paper="Shazeer 2020, arxiv.org/abs/2002.05202",
    does="A gated feed-forward that starts as the pretrained function.",
    use="To compare architectures. No clear effect on a tenth of the rows; 1.4 times the step.",
    aka=("glu", "gated"), likely=LIKELY)
SWIGLU = Technique(
    "swiglu", swiglu, paper="Shazeer 2020, arxiv.org/abs/2002.05202",
    does="A feed-forward gated by SiLU that starts near the pretrained function.",
    use="To compare architectures. No clear effect on a tenth of the rows or on all (one seed each).",
    aka=("silu", "swish"), likely=LIKELY)
