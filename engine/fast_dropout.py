"""Dropout (Srivastava et al. 2014) on the CPU with 15 random bits a number instead of a float64 each."""

import torch
import torch.nn as nn


class FastDropout(nn.Dropout):
    """`nn.Dropout`, several times faster on the CPU: four numbers share one 64-bit draw of torch's global generator.

    p is rounded to a multiple of 1/32768, and the kept numbers are scaled by 1 / (1 - p) for that p, so that the
    expectation stays what it was (in bf16 but for that factor's rounding, as with `nn.Dropout`). Masks differ from
    those that `nn.Dropout` draws from the same seed. Other devices take the parent's path.
    """

    def forward(self, x):
        """Return x, of any shape, with each number dropped with probability p in training; else x itself."""
        if not self.training or x.device.type != "cpu" or self.inplace or not 0 < threshold(self.p) < 32768:
            return super().forward(x)
        return x * multiplier(x, self.p)  # x itself is not kept for the backward pass, the multiplier is


def multiplier(x, p):
    """Draw a tensor like x that is 0 with probability p (rounded to 1/32768) and 1 / (1 - p) otherwise."""
    bits = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:x.numel()]
    dropped = threshold(p)
    scale = 32768 / (32768 - dropped)
    # 15 random bits less the threshold are negative where dropped; the sign, spread over the word, makes -1 of those.
    kept = bits.bitwise_and_(0x7FFF).sub_(dropped).bitwise_right_shift_(15).bitwise_not_()  # -1 where kept, else 0
    if x.dtype in (torch.bfloat16, torch.float16):  # -1 has all bits set: as a mask over the bits of `scale`
        mask = torch.tensor(scale, dtype=x.dtype).view(torch.int16).item()
        return kept.bitwise_and_(mask).view(x.dtype).view(x.shape)
    return kept.to(x.dtype).mul_(-scale).view(x.shape)


def threshold(p):
    """Return how many of 32768 equally likely draws drop a number."""
    return round(p * 32768)


def use_fast_dropout(model):
    """Put a `FastDropout` in the place of every plain `nn.Dropout` in `model`; no state_dict key changes."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and not child.inplace:
                setattr(parent, name, FastDropout(child.p).train(child.training))
