"""An encoder that leaves padding out: its layers run over the N real tokens of a batch instead of B T.

Zeng et al. 2022 (https://arxiv.org/abs/2208.08124) and ModernBERT (Warner et al. 2024,
https://arxiv.org/abs/2412.13663) do so: linear layers, norms and feed-forward treat tokens one by one and need no
padding. Here it is there around the product of queries and keys alone, and not even there on CUDA in half precision
without dropout, where torch has FlashAttention's kernel for texts of several lengths (not measured here). Batches of
texts of about equal length have little padding to leave out; batches in random order have much.

Legend of the shape comments:  B batch · T tokens · N real tokens of a batch · C hidden size · H heads · D = C // H
"""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from bert import BertLayer, BertModel, BertSelfAttention
from engine.packed_attention import PackedSelfAttention
from extensions.architecture.extra_attention import ExtraAttention
from extensions.encoder import overlaid, underlaid
from utils import get_extended_attention_mask

# Whose methods treat tokens one by one: but for `attention`, which is padded for.
TOKENWISE = BertSelfAttention, PackedSelfAttention, BertLayer, ExtraAttention


class Packing(NamedTuple):
    """Where the N real tokens of B texts stand: what layers over real tokens are given for a mask."""

    real: torch.Tensor  # (N,): indices into B T
    mask: torch.Tensor  # (B, 1, 1, T), additive
    ends: torch.Tensor  # (B + 1,) int32: text b is the tokens ends[b] to ends[b + 1]

    def pad(self, x):
        """Put the tokens x (1, N, ...) where they stand: (B, T, ...), with zeros between them."""
        B, T = len(self.mask), self.mask.shape[-1]
        return x.new_zeros(B * T, *x.shape[2:]).index_copy(0, self.real, x[0]).unflatten(0, (B, T))

    def unpad(self, x):
        """Return the real tokens of x (B, T, ...): (1, N, ...)."""
        return x.flatten(0, 1).index_select(0, self.real).unsqueeze(0)


class UnpaddedAttention(BertSelfAttention):
    """Attention that is given real tokens (1, N, C) with a `Packing`, and pads queries, keys and values."""

    inner = True  # whether what comes before `attention` treats tokens one by one
    plain = True  # whether `attention` is the parent's too

    def forward(self, hidden_states, attention_mask):
        """Map hidden_states and a mask, (1, N, C) and a Packing or as the parent's, to a tensor like hidden_states."""
        if isinstance(attention_mask, Packing) and not self.inner:
            return attention_mask.unpad(super().forward(attention_mask.pad(hidden_states), attention_mask.mask))
        return super().forward(hidden_states, attention_mask)

    def attention(self, key, query, value, attention_mask):
        """Return the joined heads (1, N, C) of key, query and value (1, H, N, D)."""
        if not isinstance(attention_mask, Packing):
            return super().attention(key, query, value, attention_mask)
        key, query, value = (x.transpose(1, 2) for x in (key, query, value))  # (1, N, H, D)
        if self.takes_lengths(query):
            from torch.nn.attention.varlen import varlen_attn

            T = attention_mask.mask.shape[-1]
            context = varlen_attn(query[0], key[0], value[0], attention_mask.ends, attention_mask.ends, T, T)
            return context.flatten(1).unsqueeze(0)
        key, query, value = (attention_mask.pad(x).transpose(1, 2) for x in (key, query, value))  # (B, H, T, D)
        return attention_mask.unpad(super().attention(key, query, value, attention_mask.mask))

    def takes_lengths(self, query):
        """Tell whether torch has its kernel for texts of several lengths here, and it computes this attention."""
        return (query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16) and self.plain
                and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256 and not (self.training and self.dropout.p > 0)
                and torch.cuda.get_device_capability(query.device) >= (8, 0))


class PaddedAround(nn.Module):
    """A layer that is another technique's, with padding around all of it."""

    def forward(self, hidden_states, attention_mask, **options):
        """Map hidden_states and a mask, (1, N, C) and a Packing or as the parent's, to a tensor like hidden_states."""
        if not isinstance(attention_mask, Packing):
            return super().forward(hidden_states, attention_mask, **options)
        return attention_mask.unpad(super().forward(
            attention_mask.pad(hidden_states), attention_mask.mask, **options))


class UnpaddedModel(BertModel):
    """`BertModel` whose layers run over real tokens; what it returns is 0 at padding."""

    waits = True  # for the device, in every pass, which no CUDA graph can hold

    def encode(self, hidden_states, attention_mask, **options):
        """Run the layers over hidden_states (B, T, C); attention_mask (B, T) is 1 for tokens, 0 for padding.

        N is a number on the host: once a batch this waits for the device.
        """
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        ends = F.pad(attention_mask.sum(1).cumsum(0), (1, 0)).int()  # (B + 1,)
        packing = Packing(attention_mask.flatten().nonzero().squeeze(1),  # the wait
                          get_extended_attention_mask(attention_mask, dtype), ends)
        hidden_states = packing.unpad(hidden_states)  # (1, N, C)
        for layer in self.bert_layers:
            if self.config.gradient_checkpointing and self.training:
                hidden_states = checkpoint(layer, hidden_states, packing, use_reentrant=False, **options)
            else:
                hidden_states = layer(hidden_states, packing, **options)
        return packing.pad(hidden_states)


def tokenwise(module, methods):
    """Tell whether these methods treat tokens one by one, as those of the classes TOKENWISE do.

    Another class with one of them says so of itself by `tokenwise = True`.
    """
    return all(kind in TOKENWISE or vars(kind).get("tokenwise", False) for kind in type(module).__mro__
               if kind is not nn.Module and any(method in vars(kind) for method in methods))


def unpad(model):
    """Let the encoder of `model` run over real tokens, in place; return (how many layers do, of how many).

    What another technique has put there keeps its class, and gets padding around all of it that may look at other
    tokens: a layer with a `forward` or `add_norm` of its own, an attention with a `forward` or `transform` of its own.
    An `encode` of its own must end in the parent's. Raises ValueError where no layer is left that could gain, and
    where the layers' hidden states are asked for, which would have another shape.
    """
    bert = model.bert
    if isinstance(bert, UnpaddedModel):
        raise ValueError("it is there already")
    if getattr(model, "needs_layers", False):
        raise ValueError("--pooling layers reads padded hidden states of the layers, and there are none; leave one of "
                         "the two out")
    around = [layer for layer in bert.bert_layers if not tokenwise(layer, ("forward", "add_norm"))]
    if len(around) == len(bert.bert_layers):
        raise ValueError("another technique has layers of its own in place of all layers, and padding would stay "
                         "around each; leave one of the two out")
    for layer in around:
        layer.__class__ = overlaid(type(layer), PaddedAround)
    for module in bert.modules():
        if isinstance(module, BertSelfAttention):
            module.inner = tokenwise(module, ("forward", "transform"))
            module.plain = tokenwise(module, ("forward", "transform", "attention"))
            module.__class__ = overlaid(type(module), UnpaddedAttention)
    bert.__class__ = underlaid(type(bert), UnpaddedModel)
    return len(bert.bert_layers) - len(around), len(bert.bert_layers)
