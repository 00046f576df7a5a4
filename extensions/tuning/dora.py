"""DoRA: LoRA for the direction of a weight, and a learned magnitude (Liu et al. 2024, arxiv.org/abs/2402.09353)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from extensions.technique import Technique
from extensions.tuning._linears import merge, unmerge
from extensions.tuning.lora import LIKELY, VALID, LoRALinear, put_lora


class DoRALinear(LoRALinear):
    """y = m ⊙ V x / ‖V‖ + b, with V = W + s B A, its norms, and the magnitudes m = ‖W‖ at first, one an output.

    ‖V‖ is a constant to the gradient (section 4.3). As in the authors' code the norms are of the weights of one
    output, a row of torch's (out_features, in_features). With dropout only B A sees x dropped, as in LoRA; the authors
    drop it for (m / ‖V‖ - 1) W x too, at the price of another product with W. Checkpoint keys: LoRA's and magnitude.
    """

    def __init__(self, linear, *options):
        super().__init__(linear, *options)
        self.magnitude = nn.Parameter(torch.linalg.vector_norm(linear.weight.detach(), dim=1))  # (out_features,)
        if not self.magnitude.all():
            raise ValueError("a layer has outputs whose weights are all 0, and so no direction: name dora before what "
                             "has added it, or choose other targets or layers")

    def scale(self):
        """Return m / ‖V‖, (out_features,)."""
        with torch.no_grad():
            norms = torch.linalg.vector_norm(super().effective()[0], dim=1)
        return self.magnitude / norms

    def adapted(self, x):
        """Map x (..., in_features) to (..., out_features)."""
        y = F.linear(x, self.weight) + self.low_rank(x)
        scaled = self.scale() * y  # in fp32, also where y is in bf16
        return (scaled if self.bias is None else scaled + self.bias).to(y.dtype)

    def effective(self):
        """Return (m V / ‖V‖, b)."""
        return self.scale().unsqueeze(1) * super().effective()[0], self.bias


def dora(bert, rank=8, alpha=16.0, dropout=0.0, targets="query+value", layers="all", rslora=False):
    """Freeze the encoder and give linear layers a low-rank change of direction and a magnitude; options as for `lora`.

    Nothing changes until training. A step computes ‖V‖ anew, so it takes longer than LoRA's; merged, it is as fast.
    """
    put_lora(DoRALinear, bert, rank, alpha, dropout, targets, layers, rslora)


DORA = Technique(
    "dora", dora, paper="Liu et al. 2024, arxiv.org/abs/2402.09353",
    does="LoRA for a weight's direction, and a learned magnitude.",
    use="Where lora falls short. As good as lora of equal rank on a tenth of the rows; slower.",
    aka=("weight-decomposed",), valid=VALID, likely=LIKELY, freezes=True)

__all__ = ["DoRALinear", "dora", "merge", "unmerge"]
