"""Another number of heads over the pretrained projections: all of them, or those of keys and values alone.

Legend of the shape comments:  B batch · T tokens · C hidden size · H heads · D = C // H · G heads of keys and values
"""

import torch
import torch.nn as nn

from bert import BertSelfAttention
from extensions.encoder import overlay
from extensions.technique import Range, Technique


class GroupedSelfAttention(BertSelfAttention):
    """Attention in which H / G query heads share a head of keys and values: `key` and `value` map C to G·D."""

    tokenwise = True  # its projections treat tokens one by one: see engine/unpadded.py

    def transform(self, x, linear_layer):
        """Project x (B, T, C) with `linear_layer`, split it into heads, repeat those that are shared: (B, H, T, D)."""
        B, T, _ = x.shape
        heads = linear_layer(x).view(B, T, -1, self.attention_head_size).transpose(1, 2)  # (B, H or G, T, D)
        return heads.repeat_interleave(self.num_attention_heads // heads.shape[1], dim=1)  # (B, H, T, D)


def mha(bert, heads=0):
    """Split the hidden size of `bert` into `heads` heads, over the same weights; 0 leaves those it was loaded with.

    Head h attends by softmax(q_h k_hᵀ / √D) with D = C / heads, so that another number gives another function: 24 for
    MiniLM's 12 change the last hidden states of 64 sentences of SST by 46 % (the norm of the change over theirs), 48 by
    64 %, 6 by 58 %. Raises ValueError unless `heads` divides the hidden size: a head would have no whole number of
    features. The 36 of Peng, Yuan and Wang (2024) divide neither 768 (21.3 features) nor 384 (10.7); 24 and 48 do.
    """
    C = bert.config.hidden_size
    if heads and C % heads:
        below, above = (next(n for n in numbers if C % n == 0) for numbers in (
            range(min(heads, C), 0, -1), range(min(heads, C), C + 1)))
        raise ValueError(f"heads={heads} does not divide the hidden size {C}: {C / heads:.1f} features a head; choose "
                         f"{' or '.join(map(str, sorted({below, above})))}")
    for layer in bert.bert_layers if heads else ():
        layer.self_attention.num_attention_heads, layer.self_attention.attention_head_size = heads, C // heads


@torch.no_grad()
def pool(linear, heads, groups):
    """Make `groups` heads of the `heads` that a linear layer has, by the means of neighbours, in place."""
    def mean(tensor):  # (H·D, ...) to (G·D, ...)
        return tensor.unflatten(0, (groups, heads // groups, -1)).mean(dim=1).flatten(0, 1)
    linear.weight.data, linear.bias.data = mean(linear.weight), mean(linear.bias)
    linear.out_features = len(linear.bias)


def gqa(bert, groups=4):
    """Let groups of query heads share keys and values: grouped-query attention (Ainslie et al. 2023).

    https://arxiv.org/abs/2305.13245: the projections of keys and values of a group's heads become their mean. The paper
    then goes on with pre-training, for 5 % of its steps; without, MiniLM's last hidden states (64 sentences of SST)
    change by 63 % with 6 groups of its 12 heads, 73 % with 4, 75 % with 3, 80 % with 2 and 84 % with 1. As many groups
    as heads change nothing. Raises ValueError unless `groups` divides the number of heads.

    What this saves here is parameters. The paper's aim, a smaller cache of keys and values, has no meaning in this
    encoder, and neither has such a cache: a decoder keeps the keys and values of the tokens that it has written,
    because the next ones attend to them; BERT reads a text once, all tokens attend to all, and a further token would
    change every key and value but the first layer's. What can be kept of a frozen encoder is its output
    (engine/feature_cache.py).
    """
    for layer in bert.bert_layers:
        attention = layer.self_attention
        heads = attention.num_attention_heads
        if not (type(attention.key) is type(attention.value) is nn.Linear):
            raise ValueError("the keys and values are not as they were loaded any more: another technique has taken "
                             "their place")
        if not 1 <= groups <= heads or heads % groups:
            raise ValueError(f"groups={groups} does not divide the number of heads, {heads}; choose of "
                             f"{', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}")
        pool(attention.key, heads, groups)
        pool(attention.value, heads, groups)
        overlay(attention, GroupedSelfAttention)


def mqa(bert):
    """Let all query heads share one head of keys and values: multi-query attention, `gqa` with one group (see there).

    Shazeer 2019, https://arxiv.org/abs/1911.02150.
    """
    gqa(bert, groups=1)


MHA = Technique(
    "mha", mha, paper="Vaswani et al. 2017, arxiv.org/abs/1706.03762",
    does="Multi-head attention; with heads=N another number of heads over the same weights.",
    use="The default. Another number changes the function: 24 heads for MiniLM's 12 hurt (.665).",
    aka=("multi-head", "default"), likely={"n": "heads", "num_heads": "heads", "num_attention_heads": "heads"})
GQA = Technique(
    "gqa", gqa, paper="Ainslie et al. 2023, arxiv.org/abs/2305.13245",
    does="Groups of heads share keys and values.",
    use="To compare architectures. It hurt much on a tenth of the rows (.568, base .691).",
    aka=("grouped-query",), valid={"groups": Range(1)},
    likely={"heads": "groups", "kv_heads": "groups", "num_key_value_heads": "groups"})
MQA = Technique(
    "mqa", mqa, paper="Shazeer 2019, arxiv.org/abs/1911.02150",
    does="All heads share one key and one value.",
    use="To compare architectures. It hurt much on a tenth of the rows (.542, base .691).", aka=("multi-query",))
