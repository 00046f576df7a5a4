"""Biases of the attention scores by the distance of query and key: learned ones, and ALiBi.

Legend of the shape comments:  B batch · T tokens · H heads · N kinds of distance
"""

import contextlib
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bert import BertSelfAttention
from extensions.encoder import overlay
from extensions.technique import OneOf, Range, Technique


def distances(T, device):
    """Return j - i of query i and key j: (T, T)."""
    positions = torch.arange(T, device=device)
    return positions - positions[:, None]


class BiasedSelfAttention(BertSelfAttention):
    """Attention with softmax(q kᵀ / √D + mask + bias), the bias by head and distance."""

    def attention(self, key, query, value, attention_mask):
        """Add the bias (H, T, T) to the mask, which broadcasts to (B, 1, T, T), and attend; see the parent."""
        bias = self.bias(distances(query.shape[2], query.device))
        # Where the bias alone is trained, CUDA's efficient kernel reads what it has not kept (pytorch issue 148476).
        alone = bias.requires_grad and not (key.requires_grad or query.requires_grad or value.requires_grad)
        with sdpa_kernel(SDPBackend.MATH) if alone else contextlib.nullcontext():
            return super().attention(key, query, value, attention_mask + bias.to(attention_mask.dtype))


class RelativeSelfAttention(BiasedSelfAttention):
    """Attention with a learned bias for each kind of distance: `relative_bias` (N, H), looked up by `kind_of`."""

    def bias(self, distance):
        """Return the bias (H, T, T) for distances (T, T)."""
        return F.embedding(self.kind_of(distance), self.relative_bias).permute(2, 0, 1)

    def kind_of(self, distance):
        """Return which of the N kinds distances (T, T) are."""
        if self.by == "clipped":
            return distance.clamp(-self.largest, self.largest) + self.largest
        return t5_bucket(distance, len(self.relative_bias), self.largest)


class ALiBiSelfAttention(BiasedSelfAttention):
    """Attention with the bias -m_h |i - j|; the slopes m (H,) are constants."""

    def bias(self, distance):
        """Return the bias (H, T, T) for distances (T, T)."""
        return -self.slopes[:, None, None] * distance.abs()


def t5_bucket(distance, buckets, largest):
    """Return the bucket of distances, those of T5 for both directions (Raffel et al. 2020, section 2.1).

    Half of the buckets are for keys after the query. Of one direction's n, the first n / 2 hold a distance each, the
    others distances that grow as a geometric series up to `largest`, and the last one all beyond.
    """
    n, exact = buckets // 2, buckets // 4
    far = exact + (distance.abs().clamp(min=1) / exact).log() / math.log(largest / exact) * (n - exact)
    bucket = torch.where(distance.abs() < exact, distance.abs(), far.long().clamp(max=n - 1))
    return bucket + n * (distance > 0)


def slopes_of(heads):
    """Return ALiBi's slopes: 2^(-8 h / H), h = 1 to H, for a power of 2; else those of the next lower power and, of the
    next higher, every other one from its first on, as many as are missing."""
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    return slopes + [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)][:heads - power]


def drop_absolute(bert):
    """Remove the absolute positions of `bert`: their embeddings are zeros, and constants from here on."""
    zeros = torch.zeros_like(bert.pos_embedding.weight)
    del bert.pos_embedding.weight
    bert.pos_embedding.register_buffer("weight", zeros)


def require_buckets(by, buckets, largest, **options):
    """Raise ValueError for numbers of which `t5_bucket` can make no buckets."""
    if by == "t5" and (buckets < 4 or buckets % 4 or largest <= buckets // 4):
        raise ValueError(f"buckets={buckets},largest={largest}: buckets must be a multiple of 4, and largest more than "
                         "a quarter of them")


def relative(bert, by="t5", buckets=32, largest=128, keep=True):
    """Add to the attention scores of every head a learned bias by distance, 0 at the start: nothing changes.

    by=t5: `buckets` buckets of distance, all beyond `largest` in one (Raffel et al. 2020, arxiv.org/abs/1910.10683);
    T5's layers share one table, and here each has its own. by=clipped: a bias for each distance from -largest to
    largest, farther ones as the farthest (Shaw et al. 2018, arxiv.org/abs/1803.02155, who take 16); theirs is the
    product of the query with a learned vector. The absolute positions stay; keep=false removes them, which loses what
    was learned with them (MiniLM's last hidden states change by 73 %, measured as for `alibi`). The mask becomes one of
    B H T T numbers.
    """
    for layer in bert.bert_layers:
        attention = layer.self_attention
        overlay(attention, RelativeSelfAttention, by=by, largest=largest)
        attention.relative_bias = nn.Parameter(attention.query.weight.new_zeros(
            buckets if by == "t5" else 2 * largest + 1, attention.num_attention_heads))
    if not keep:
        drop_absolute(bert)


def alibi(bert, keep=False):
    """Let scores fall with the distance, by -m_h |i - j| in head h (Press et al. 2022, https://arxiv.org/abs/2108.12409).

    The paper's is for a decoder, whose keys all come before the query; an encoder's come on both sides, and the bias is
    symmetric here. It takes the place of the absolute positions, which keep=true keeps. MiniLM's last hidden states (64
    sentences of SST) change by 89 %, with the absolute positions by 69 %. The mask becomes one of B H T T numbers.
    """
    for layer in bert.bert_layers:
        attention = layer.self_attention
        overlay(attention, ALiBiSelfAttention)
        slopes = torch.tensor(slopes_of(attention.num_attention_heads), device=attention.query.weight.device)
        attention.register_buffer("slopes", slopes, persistent=False)
    if not keep:
        drop_absolute(bert)


RELATIVE = Technique(
    "relative", relative, paper="Raffel et al. 2020, arxiv.org/abs/1910.10683; Shaw et al. 2018, 1803.02155",
    does="A learned bias of attention by distance, 0 at first, beside the absolute positions.",
    use="With long texts, perhaps. No clear effect on a tenth of the rows.",
    aka=("t5", "shaw", "clipped"), valid={"by": OneOf(("t5", "clipped")), "largest": Range(1)},
    only_with={"buckets": "by=t5"}, check=require_buckets,
    likely={"max_distance": "largest", "k": "largest", "num_buckets": "buckets", "type": "by", "style": "by"})
ALIBI = Technique(
    "alibi", alibi, paper="Press et al. 2022, arxiv.org/abs/2108.12409",
    does="Attention scores fall with distance; no learned positions.",
    use="To compare architectures. It hurt much on a tenth of the rows (.579, base .691).", aka=("linear-bias",))
