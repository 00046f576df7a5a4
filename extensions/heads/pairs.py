"""Pairs of texts: packed into one sequence, or encoded apart and compared.

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

import torch
import torch.nn.functional as F

from tokenizer import longest_first


def pack_pairs(input_ids_1, attention_mask_1, input_ids_2, attention_mask_2, max_length):
    """Join [CLS] a [SEP] (B, T1) and [CLS] b [SEP] (B, T2) row by row to [CLS] a [SEP] b [SEP].

    Returns (input_ids, attention_mask, token_type_ids), each (B, T) with T <= max_length; the types are
    0 for the first text and 1 for the second. Too long a pair loses tokens from the end of its longer
    text first. Equal to tokenizing the pair of texts.
    """
    attention_mask_1, attention_mask_2 = attention_mask_1.long(), attention_mask_2.long()
    # (B,) tokens of the texts themselves; a row of padding alone has none
    a, b = ((mask.sum(1) - 2).clamp(min=0) for mask in (attention_mask_1, attention_mask_2))
    # The one [CLS] and two [SEP] always stay.
    a, b = (kept.unsqueeze(1) for kept in longest_first(a, b, max_length - 3))  # (B, 1)

    # The width is a number on the host: the one wait for the device in a pair's forward pass.
    position = torch.arange(int((a + b).max()) + 3, device=a.device).unsqueeze(0)  # (1, T)
    first_end, second_end = a + 1, a + b + 2  # (B, 1): the places of the two [SEP]
    sources = torch.cat([input_ids_1, input_ids_2], dim=1)  # (B, T1 + T2)
    place = torch.where(position <= first_end, position, input_ids_1.shape[1] + position - first_end)
    input_ids = sources.gather(1, place.clamp(max=sources.shape[1] - 1))
    separator = input_ids_1.gather(1, (attention_mask_1.sum(1, keepdim=True) - 1).clamp(min=0))  # (B, 1)
    input_ids = torch.where((position == first_end) | (position == second_end), separator, input_ids)

    attention_mask = (position <= second_end).long()
    token_type_ids = (position > first_end).long() * attention_mask
    return input_ids * attention_mask, attention_mask, token_type_ids


def encode_apart(encode, input_ids_1, attention_mask_1, input_ids_2, attention_mask_2):
    """Return the encodings u and v, (B, C) each, of the first and the second texts, by `encode(ids, mask)`.

    The rows of a batch agree in the length of the pair, not of each text. So all 2B texts are
    encoded in chunks of about equal length: of Quora's two columns a third would be padding. Where
    a GPU trains, they are encoded at once: to hear of their lengths, the host would have to wait for
    it, which no CUDA graph can hold. That may be up to twice the tokens of the pairs in one sequence.
    """
    T = max(input_ids_1.shape[1], input_ids_2.shape[1])
    input_ids, attention_mask = (
        torch.cat([F.pad(side, (0, T - side.shape[1])) for side in sides])  # (2B, T)
        for sides in ((input_ids_1, input_ids_2), (attention_mask_1, attention_mask_2)))
    if torch.is_grad_enabled() and input_ids.device.type not in ("cpu", "mps"):
        return encode(input_ids, attention_mask).chunk(2)
    lengths, order = attention_mask.sum(1).sort()
    widest = [max(1, int(chunk[-1])) for chunk in lengths.cpu().chunk(8)]  # the one wait for the device
    encoded = [encode(input_ids[rows, :width], attention_mask[rows, :width])
               for rows, width in zip(order.chunk(8), widest, strict=True)]
    return torch.cat(encoded)[order.argsort()].chunk(2)


def swapped(batch):
    """Return a batch of pairs, packed or apart, with the two texts of every pair in the other order.

    What was cut to pack a pair stays cut: of two equally long texts over an odd budget packing cuts the first by one
    token more, whichever that is.
    """
    if "token_ids_1" in batch:
        names = [name.removesuffix("_1") for name in batch if name.endswith("_1")]
        return {**batch, **{f"{name}_{3 - side}": batch[f"{name}_{side}"] for name in names for side in (1, 2)}}
    input_ids, attention_mask, token_type_ids = (
        batch[name] for name in ("token_ids", "attention_mask", "token_type_ids"))  # (B, T) each
    second = token_type_ids.sum(1, keepdim=True)  # (B, 1): the tokens of b [SEP]
    first = attention_mask.sum(1, keepdim=True) - second  # (B, 1): of [CLS] a [SEP]
    position = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)  # (1, T)
    place = torch.where(position <= second, first + position - 1, position - second) * (position > 0)
    return {**batch, "token_ids": input_ids.gather(1, place.clamp(max=input_ids.shape[1] - 1)) * attention_mask,
            "token_type_ids": (position > second).long() * attention_mask}


def concat(u, v):
    """Return (u, v, |u - v|), (B, 3 C) (Reimers and Gurevych 2019, section 3)."""
    return torch.cat([u, v, (u - v).abs()], dim=-1)


def product(u, v):
    """Return (u, v, |u - v|, u v), (B, 4 C) (Conneau et al. 2017, https://arxiv.org/abs/1705.02364, figure 1)."""
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


concat.width, product.width = 3, 4  # in multiples of C
