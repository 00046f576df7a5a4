"""Attention layers over the encoder's output (Peng, Yuan and Wang 2024)."""

import torch.nn as nn

from bert import BertSelfAttention
from extensions.technique import Range, Technique


class ExtraAttention(nn.Module):
    """h + W_o Attention(h), with W_o = 0 at the start; takes the place of a BertLayer after the last one."""

    tokenwise = True  # but for its attention: see engine/unpadded.py

    def __init__(self, config):
        super().__init__()
        self.self_attention = BertSelfAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask, task=None):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C)."""
        return hidden_states + self.dropout(self.output(self.self_attention(hidden_states, attention_mask)))


def extra_attention(bert, layers=1):
    """Append `layers` attention layers to the encoder, which change nothing until they are trained."""
    for _ in range(layers):
        layer = ExtraAttention(bert.config)
        layer.apply(bert._init_weights)
        nn.init.zeros_(layer.output.weight)
        bert.bert_layers.append(layer)


EXTRA_ATTENTION = Technique(
    "extra-attention", extra_attention, paper="Peng, Yuan and Wang 2024",
    does="Attention layers over the encoder's output, which change nothing at first.",
    use="With many rows. No clear effect on a tenth of the rows.",
    aka=("attention-layer",), likely={"n": "layers"}, valid={"layers": Range(1)})
