"""Self-attention with query, key and value in one matrix product, and attention dropout that the CPU does fast."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bert import BertSelfAttention
from engine.fast_dropout import FastDropout
from extensions.encoder import underlay


class PackedSelfAttention(BertSelfAttention):
    """`BertSelfAttention` computed faster: same formula, parameters and checkpoint keys.

    [q k v] = x [W_q W_k W_v]ᵀ + [b_q b_k b_v] is one product instead of three. In training on the CPU,
    dropout(softmax(q kᵀ / √D + mask)) v is spelled out, with `FastDropout`: torch's fused attention has no dropout
    there, and what it falls back to takes much longer. In bf16 the scores are then rounded to bf16.
    """

    final = True  # techniques that change the attention come before it

    def forward(self, hidden_states, attention_mask):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C)."""
        if not is_packable(self):
            return super().forward(hidden_states, attention_mask)
        B, T, _ = hidden_states.shape
        projections = (self.query, self.key, self.value)
        packed = F.linear(hidden_states, torch.cat([linear.weight for linear in projections]),
                          torch.cat([linear.bias for linear in projections]))  # (B, T, 3 C)
        packed = packed.view(B, T, 3, self.num_attention_heads, self.attention_head_size)
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        return self.attention(key, query, value, attention_mask)

    def attention(self, key, query, value, attention_mask):
        """Return dropout(softmax(q kᵀ / √D + mask)) v, heads joined: (B, T, C); see the parent."""
        if not (self.training and self.dropout.p > 0 and query.device.type == "cpu"):
            return super().attention(key, query, value, attention_mask)
        B, H, T, D = query.shape
        mask = attention_mask.expand(B, H, -1, -1).flatten(0, 1)  # (B·H, 1 or T, T)
        query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)  # (B·H, T, D)
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=D**-0.5)  # (B·H, T, T)
        context = torch.bmm(self.dropout(scores.softmax(-1)), value)  # (B·H, T, D)
        return context.view(B, H, T, D).transpose(1, 2).flatten(2)  # (B, T, C)


def is_packable(attention):
    """Tell whether the projections are plain linear layers of one shape, which no technique has replaced or hooked."""
    projections = (attention.query, attention.key, attention.value)
    return type(attention).transform is BertSelfAttention.transform and all(
        type(linear) is nn.Linear and linear.bias is not None
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
        for linear in projections) and len({linear.weight.shape for linear in projections}) == 1


def pack_attention(model):
    """Make every attention in `model` a `PackedSelfAttention` too; no key changes."""
    for module in model.modules():
        if isinstance(module, BertSelfAttention) and not isinstance(module, PackedSelfAttention):
            underlay(module, PackedSelfAttention)
            if type(module.dropout) is nn.Dropout:
                module.dropout = FastDropout(module.dropout.p).train(module.training)
