"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805), bottom-up: attention, layer, model.

Legend of the shape comments:  B batch · T tokens · C hidden size · H heads · D = C // H
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from base_bert import BertPreTrainedModel
from utils import *  # noqa: F403 - the course's utils.py is star-imported too


class BertSelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config):
        super().__init__()
        assert config.hidden_size % config.num_attention_heads == 0, (
            f"hidden_size {config.hidden_size} must be a multiple of num_attention_heads {config.num_attention_heads}"
        )
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.all_head_size = config.hidden_size

        self.query = nn.Linear(config.hidden_size, self.all_head_size)
        self.key = nn.Linear(config.hidden_size, self.all_head_size)
        self.value = nn.Linear(config.hidden_size, self.all_head_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def transform(self, x, linear_layer):
        """Project x (B, T, C) with `linear_layer` and split it into heads: (B, H, T, D)."""
        B, T, _ = x.shape
        return linear_layer(x).view(B, T, self.num_attention_heads, -1).transpose(1, 2)  # (B, H, T, D)

    def attention(self, key, query, value, attention_mask):
        """Return dropout(softmax(q kᵀ / √D + mask)) v, heads joined: (B, T, C).

        `key`, `query` and `value` are (B, H, T, D). `attention_mask` is added to the scores and
        broadcasts over them: (B, 1, 1, T), 0 where a token may be seen and -10000 where not. The
        mask is finite, so that a row of padding alone attends as if unmasked and gives no NaN.
        """
        dropout_p = self.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout_p)  # (B, H, T, D)
        return context.transpose(1, 2).flatten(2)  # (B, T, C)

    def forward(self, hidden_states, attention_mask):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C)."""
        key = self.transform(hidden_states, self.key)
        value = self.transform(hidden_states, self.value)
        query = self.transform(hidden_states, self.query)
        return self.attention(key, query, value, attention_mask)


class BertLayer(nn.Module):
    """One post-norm transformer layer: attention, add & norm, feed-forward, add & norm.

    `forward` takes a task for the sake of layers that techniques put in its place; here it makes no difference.
    """

    def __init__(self, config):
        super().__init__()
        self.self_attention = BertSelfAttention(config)
        self.attention_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention_dropout = nn.Dropout(config.hidden_dropout_prob)

        assert config.hidden_act == "gelu", f"hidden_act must be 'gelu', not {config.hidden_act!r}"
        self.interm_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.interm_af = F.gelu
        self.out_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.out_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.out_dropout = nn.Dropout(config.hidden_dropout_prob)

    def add_norm(self, input, output, dense_layer, dropout, ln_layer):
        """Return ln_layer(input + dropout(dense_layer(output))), the residual step: (B, T, C)."""
        return ln_layer(input + dropout(dense_layer(output)))

    def forward(self, hidden_states, attention_mask, task=None):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C)."""
        attended = self.self_attention(hidden_states, attention_mask)
        attended = self.add_norm(
            hidden_states, attended, self.attention_dense, self.attention_dropout, self.attention_layer_norm
        )
        widened = self.interm_af(self.interm_dense(attended))  # (B, T, intermediate_size)
        return self.add_norm(attended, widened, self.out_dense, self.out_dropout, self.out_layer_norm)


class BertModel(BertPreTrainedModel):
    """The encoder: embeddings, a stack of layers, and the pooler over the first token, [CLS]."""

    def __init__(self, config):
        super().__init__(config)
        self.config = config
        assert config.position_embedding_type == "absolute", (
            f"position_embedding_type must be 'absolute', not {config.position_embedding_type!r}"
        )

        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.pos_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.tk_type_embedding = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embed_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.embed_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings).unsqueeze(0))

        self.bert_layers = nn.ModuleList([BertLayer(config) for _ in range(config.num_hidden_layers)])

        self.pooler_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.pooler_af = nn.Tanh()

        self.init_weights()

    def embed(self, input_ids, token_type_ids=None):
        """Sum word, position and token-type embeddings of input_ids (B, T), normalise: (B, T, C).

        `token_type_ids` (B, T) is 0 for the first text of a pair and 1 for the second; None is all 0.
        """
        T = input_ids.shape[1]
        assert T <= self.config.max_position_embeddings, (
            f"{T} tokens, but this encoder has {self.config.max_position_embeddings} positions; truncate the text"
        )
        if token_type_ids is None:
            token_types = self.tk_type_embedding.weight[0]  # (C,): the same row for every token
        else:
            token_types = self.tk_type_embedding(token_type_ids)  # (B, T, C)
        embeddings = self.word_embedding(input_ids) + self.pos_embedding(self.position_ids[:, :T]) + token_types
        return self.embed_dropout(self.embed_layer_norm(embeddings))

    def encode(self, hidden_states, attention_mask, **options):
        """Run the layers over hidden_states (B, T, C); attention_mask (B, T) is 1 for tokens, 0 for padding.

        `options`, none or a task, go to every layer.
        """
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        # One additive mask serves every layer, already in the dtype that attention computes in.
        mask = get_extended_attention_mask(attention_mask, dtype)  # noqa: F405  (B, 1, 1, T)
        for layer in self.bert_layers:
            if self.config.gradient_checkpointing and self.training:
                hidden_states = checkpoint(layer, hidden_states, mask, use_reentrant=False, **options)
            else:
                hidden_states = layer(hidden_states, mask, **options)
        return hidden_states

    def forward(self, input_ids, attention_mask, token_type_ids=None, **options):
        """Encode input_ids (B, T) under attention_mask (B, T); `options` as for `encode`.

        Returns {'last_hidden_state': (B, T, C), 'pooler_output': tanh(W h_[CLS] + b), (B, C)}.
        """
        sequence_output = self.encode(self.embed(input_ids, token_type_ids), attention_mask, **options)
        pooler_output = self.pooler_af(self.pooler_dense(sequence_output[:, 0]))
        return {"last_hidden_state": sequence_output, "pooler_output": pooler_output}
