"""Prefix-tuning: learned keys and values before every layer's own (Li and Liang 2021, https://arxiv.org/abs/2101.00190).

Without the MLP it is P-tuning v2 (Liu et al. 2022, https://arxiv.org/abs/2110.07602).
Legend:  B batch · T tokens · P length of the prefix · C width of keys and values · H heads · D = C // H
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bert import BertSelfAttention
from extensions.encoder import freeze, is_final, underlay
from extensions.technique import Range, Technique


class Prefix(nn.Module):
    """P keys and values of one layer, themselves the parameters."""

    def __init__(self, length, width, std):
        super().__init__()
        self.key, self.value = (nn.Parameter(std * torch.randn(length, width)) for _ in range(2))

    def forward(self):
        """Return keys and values, (P, C) each."""
        return self.key, self.value


class ReparameterizedPrefix(nn.Module):
    """[k v] = W_2 tanh(W_1 e + b_1) + b_2, with e (P, C) and W_1 the same in all layers and W_2 a layer's rows of one.

    The shared parts are registered in every layer: they are one parameter under several names.
    """

    def __init__(self, embedding, hidden, width):
        super().__init__()
        self.embedding, self.hidden = embedding, hidden
        self.output = nn.Linear(hidden.out_features, 2 * width)

    def forward(self):
        """Return keys and values, (P, C) each."""
        return self.output(torch.tanh(self.hidden(self.embedding.weight))).chunk(2, dim=-1)


class PrefixedSelfAttention(BertSelfAttention):
    """softmax(q [k_P; k]ᵀ / √D + [0; mask]) [v_P; v]: every token sees the prefix, whatever its mask."""

    def attention(self, key, query, value, attention_mask):
        """Return the attention over prefix and tokens, heads joined: (B, T, C); see the parent."""
        extended = []
        for prefix, own in zip(self.prefix(), (key, value), strict=True):
            prefix = prefix.unflatten(-1, (-1, own.shape[-1])).transpose(0, 1).to(own.dtype)  # (G, P, D)
            # Where several of H heads share one of G keys and values, they share its prefix.
            prefix = prefix.repeat_interleave(own.shape[1] // len(prefix), dim=0)  # (H, P, D)
            extended.append(torch.cat([prefix.expand(len(own), -1, -1, -1), own], dim=2))  # (B, H, P + T, D)
        mask = F.pad(attention_mask, (extended[0].shape[2] - key.shape[2], 0))  # (B, 1, 1, P + T)
        return super().attention(extended[0], query, extended[1], mask)


def prefix(bert, length=20, reparameterize=False, hidden=512):
    """Freeze what was loaded of `bert` and give each of its attentions `length` keys and values to learn.

    With `reparameterize` they come from an MLP of `hidden` units, as Li and Liang train them; they throw it away
    afterwards, here it stays in the model. Initial keys and values are N(0, initializer_range²), or what torch's
    initial MLP makes of N(0, 1): the output is not that of the pretrained encoder, as P keys with scores of about 0
    take their share of every attention. Li and Liang begin with the activations of real words where rows are few, and
    have 10 or 200 keys where P-tuning v2 has some 20. The papers' learning rates are 5e-5 to 1e-2. A prefix has no
    dropout and no positions: those of --positions that act on keys act on the tokens' alone. Raises ValueError for a
    second prefix, or for packed attention.
    """
    attentions = [module for module in bert.modules() if isinstance(module, BertSelfAttention)]
    if any(isinstance(attention, PrefixedSelfAttention) or is_final(attention) for attention in attentions):
        raise ValueError("there is a prefix already, or packed attention: name it once, and pack afterwards")
    freeze(bert)
    C = bert.config.hidden_size
    shared = (nn.Embedding(length, C), nn.Linear(C, hidden)) if reparameterize else ()
    for attention in attentions:
        width = attention.key.out_features
        keys_and_values = (ReparameterizedPrefix(*shared, width) if reparameterize
                           else Prefix(length, width, bert.config.initializer_range))
        underlay(attention, PrefixedSelfAttention, prefix=keys_and_values)  # what acts on tokens comes first


PREFIX = Technique(
    "prefix", prefix, paper="Li and Liang 2021, arxiv.org/abs/2101.00190; P-tuning v2: Liu et al. 2022, 2110.07602",
    does="Freezes the encoder; every attention gets keys and values to learn before the text's own.",
    use="To train few weights, in long runs at --lr 5e-3. Far below full tuning in 324 steps (.589).",
    aka=("prefix-tuning", "p-tuning-v2", "ptuning-v2"), freezes=True,
    valid={"length": Range(1), "hidden": Range(1)}, only_with={"hidden": "reparameterize=true"},
    likely={"prefix_length": "length", "num_virtual_tokens": "length", "tokens": "length", "mlp": "reparameterize",
            "prefix_projection": "reparameterize", "encoder_hidden_size": "hidden"})
