"""Prompt tuning: learned embeddings before the input's (Lester, Al-Rfou and Constant 2021, arxiv.org/abs/2104.08691).

With an encoder over them it is P-tuning (Liu et al. 2021, https://arxiv.org/abs/2103.10385).
Legend:  B batch · T tokens · P length of the prompt · C hidden size
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bert import BertModel
from extensions.encoder import freeze, overlay
from extensions.technique import OneOf, Range, Technique

SEED = 11711  # of the words that a prompt begins with


class Prompt(nn.Module):
    """P word embeddings, themselves the parameters or what an MLP makes of the parameters."""

    def __init__(self, words, encoder):
        super().__init__()
        self.embedding = nn.Parameter(words)  # (P, C)
        C = words.shape[1]
        self.encoder = nn.Identity() if encoder == "none" else nn.Sequential(
            nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C))

    def forward(self):
        """Return the word embeddings, (P, C)."""
        return self.encoder(self.embedding)


class PromptedBert(BertModel):
    """An encoder that puts a prompt before every sequence; its callers see the sequence alone."""

    def encode(self, hidden_states, attention_mask, **options):
        """Run the layers over prompt and hidden_states (B, T, C); return the states of the latter, (B, T, C).

        Prompt and tokens attend to each other; attention_mask (B, T) is 1 for tokens, 0 for padding.
        """
        embeddings = self.prompt() + self.tk_type_embedding.weight[0]  # (P, C): words without a position
        embeddings = embeddings.expand(len(hidden_states), -1, -1)  # (B, P, C)
        embeddings = self.embed_dropout(self.embed_layer_norm(embeddings)).to(hidden_states.dtype)
        hidden_states = torch.cat([embeddings, hidden_states], dim=1)  # (B, P + T, C)
        mask = F.pad(attention_mask, (self.prepended, 0), value=1)
        return super().encode(hidden_states, mask, **options)[:, self.prepended:]


def prompt(bert, length=20, encoder="none"):
    """Freeze what was loaded of `bert` and put `length` word embeddings to learn before every input.

    They begin as those of words drawn from the whole vocabulary, the same at every call (Lester et al. draw from the
    5,000 most frequent, and default to 100). They have no position, token type 0, and the embeddings' norm and dropout;
    the tokens keep their positions, and a text may be as long as before. `bert.prepended` tells pooling how many states
    are the prompt's.

    encoder=mlp puts three linear layers with ReLU between over them: one of the encoders that P-tuning tries. There
    the prompt surrounds the input by a task's pattern, and a language model's head answers; here it stands before it,
    as Lester's, and the task's own head reads the text's states. The papers' learning rates are 1e-5 to 0.3 (that with
    Adafactor). It is another function from the first step on. Raises ValueError for a second prompt.
    """
    freeze(bert)
    vocabulary = bert.word_embedding.weight
    generator = torch.Generator().manual_seed(SEED)
    words = torch.randint(len(vocabulary), (length,), generator=generator).to(vocabulary.device)
    overlay(bert, PromptedBert, prompt=Prompt(vocabulary.detach()[words].clone(), encoder), prepended=length)


PROMPT = Technique(
    "prompt", prompt, paper="Lester et al. 2021, arxiv.org/abs/2104.08691; P-tuning: Liu et al. 2021, 2103.10385",
    does="Freezes the encoder; learns word embeddings that stand before every text.",
    use="To train few weights, in long runs at --lr 5e-3. Far below full tuning in 324 steps (.580).",
    aka=("prompt-tuning", "p-tuning", "soft-prompt"), freezes=True,
    valid={"length": Range(1), "encoder": OneOf(("none", "mlp"))},
    likely={"prompt_length": "length", "num_virtual_tokens": "length", "tokens": "length", "mlp": "encoder"})
