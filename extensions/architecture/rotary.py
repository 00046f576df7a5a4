"""Rotary positions: queries and keys turned by their positions (Su et al. 2021, https://arxiv.org/abs/2104.09864).

Legend of the shape comments:  B batch · T tokens · H heads · D features of a head
"""

import torch

from bert import BertSelfAttention
from extensions.architecture.positions import drop_absolute
from extensions.encoder import overlay
from extensions.technique import Range, Technique


class RotarySelfAttention(BertSelfAttention):
    """Attention over queries and keys that are rotated by their positions."""

    def attention(self, key, query, value, attention_mask):
        """Rotate queries and keys, and attend; see the parent."""
        return super().attention(rotate(key, self.base), rotate(query, self.base), value, attention_mask)


def rotate(x, base):
    """Turn the pair of features 2i, 2i + 1 of x (B, H, T, D) at position t by the angle t base^(-2i / D)."""
    T, D = x.shape[-2:]
    frequencies = base ** (-torch.arange(0, D, 2, device=x.device) / D)  # (D / 2,)
    angles = torch.arange(T, device=x.device)[:, None] * frequencies  # (T, D / 2), fp32 under autocast too
    cos, sin = angles.cos(), angles.sin()
    even, odd = x[..., 0::2], x[..., 1::2]  # (B, H, T, D / 2)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


def rotary(bert, base=10000.0, keep=False):
    """Let the attentions of `bert` rotate queries and keys.

    q_i · k_j then depends on i - j: features 2f, 2f + 1 turn by t base^(-2f / D) at position t. It takes the place of
    the absolute positions, which keep=true keeps; either way the pretrained heads, which have not learned with it, give
    other scores: MiniLM's last hidden states (64 sentences of SST) change by 76 %, with the absolute positions by
    49 %. Raises ValueError when a head has an odd number of features.
    """
    D = bert.bert_layers[0].self_attention.attention_head_size
    if D % 2:
        raise ValueError(f"a head has {D} features, and rotary turns pairs of them: choose another number of heads")
    for layer in bert.bert_layers:
        overlay(layer.self_attention, RotarySelfAttention, base=base)
    if not keep:
        drop_absolute(bert)


ROTARY = Technique(
    "rotary", rotary, paper="Su et al. 2021, arxiv.org/abs/2104.09864",
    does="Turns queries and keys by their positions; no learned positions.",
    use="To compare architectures. It hurt much on a tenth of the rows (.577, base .691).",
    aka=("rope",), valid={"base": Range(1)}, likely={"theta": "base", "rope_theta": "base"})
