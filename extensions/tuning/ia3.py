"""(IA)³: learned vectors that scale keys, values and inner activations (Liu et al. 2022, arxiv.org/abs/2205.05638)."""

import torch.nn as nn
import torch.nn.functional as F

from extensions.encoder import freeze
from extensions.technique import Layers, Technique
from extensions.tuning._linears import AdaptedLinear, adapt_linears, merge, unmerge


class ScaledOutput(AdaptedLinear):
    """y = l ⊙ (W x + b), with l = 1 at first: the keys and the values. Checkpoint keys: weight, bias and ia3_l."""

    def __init__(self, linear):
        super().__init__(linear)
        self.ia3_l = nn.Parameter(linear.weight.new_ones(linear.out_features))

    def adapted(self, x):
        """Map x (..., in_features) to (..., out_features)."""
        y = F.linear(x, self.weight, self.bias)
        return (self.ia3_l * y).to(y.dtype)  # the product in fp32, and with it l's gradient

    def effective(self):
        """Return (diag(l) W, l ⊙ b)."""
        return self.ia3_l.unsqueeze(1) * self.weight, None if self.bias is None else self.ia3_l * self.bias


class ScaledInput(AdaptedLinear):
    """y = W (l ⊙ x) + b, with l = 1 at first: the feed-forward's inner activations. Checkpoint keys as above."""

    def __init__(self, linear):
        super().__init__(linear)
        self.ia3_l = nn.Parameter(linear.weight.new_ones(linear.in_features))

    def adapted(self, x):
        """Map x (..., in_features) to (..., out_features)."""
        return F.linear((self.ia3_l * x).to(x.dtype), self.weight, self.bias)

    def effective(self):
        """Return (W diag(l), b)."""
        return self.weight * self.ia3_l, self.bias


def ia3(bert, layers="all"):
    """Freeze the encoder and scale each layer's keys and values and what its feed-forward's second layer reads.

    softmax(q (l_k ⊙ k)ᵀ / √D) (l_v ⊙ v) and (l_ff ⊙ gelu(W_1 x)) W_2: three vectors a layer, ones at first, so that
    nothing changes until training. `layers` as for LoRA. `merge(bert)` scales the weights, `unmerge(bert)` puts them
    back. The paper's further losses are for tasks put as text, and left out. It trains at rates far above those of
    fine-tuning (3e-3 in the paper). Raises ValueError when LoRA or another technique has replaced one of the layers.
    """
    freeze(bert)
    adapt_linears(bert, ["self_attention.key", "self_attention.value"], layers, ScaledOutput)
    adapt_linears(bert, ["out_dense"], layers, ScaledInput)


IA3 = Technique(
    "ia3", ia3, paper="Liu et al. 2022, arxiv.org/abs/2205.05638",
    does="Freezes the encoder; learns scales of keys, values and inner activations.",
    use="To train few weights, in long runs at --lr 3e-3. Far below full tuning in 324 steps (.609).",
    aka=("(ia)3", "iaa"), likely={"layers_to_transform": "layers"}, valid={"layers": Layers()}, freezes=True)

__all__ = ["ScaledInput", "ScaledOutput", "ia3", "merge", "unmerge"]
