"""Pooling: from the hidden states of a sequence to one encoding.

`cls(bert)` is a module of (output, attention_mask (B, T)) -> (B, C) in fp32; `output` is what BertModel returns, with
"hidden_states", the embeddings and every layer's output, where the record's `needs_layers` says so. Padding never
counts; a row of padding alone gives zeros. Legend:  B batch · T tokens · C hidden size · L layers
"""

from contextlib import contextmanager

import torch
import torch.nn as nn

from extensions.technique import Technique


class Cls(nn.Module):
    """The first token's last hidden state."""

    def __init__(self, bert):
        super().__init__()

    def forward(self, output, attention_mask):
        return output["last_hidden_state"][:, 0].float()


class Pooler(Cls):
    """BERT's own pooler: tanh of a linear layer over the first token (Devlin et al. 2019)."""

    def forward(self, output, attention_mask):
        return output["pooler_output"].float()


def mean_of(hidden_states, attention_mask):
    """Return the mean of hidden_states (B, T, C) over real tokens, in fp32: (B, C)."""
    mask = attention_mask.unsqueeze(-1).float()  # (B, T, 1)
    return (hidden_states.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


class Mean(Cls):
    """The mean over real tokens (Reimers and Gurevych 2019, section 3)."""

    def forward(self, output, attention_mask):
        return mean_of(output["last_hidden_state"], attention_mask)


class Max(Cls):
    """The largest value of each component over real tokens."""

    def forward(self, output, attention_mask):
        mask = attention_mask.unsqueeze(-1).bool()  # (B, T, 1)
        hidden_states = output["last_hidden_state"].float().masked_fill(~mask, -torch.inf)
        return hidden_states.amax(dim=1).masked_fill(~mask.any(dim=1), 0.0)


class Attention(Cls):
    """A weighted mean over real tokens, the weights softmax(w · h / √C) of a learned query w.

    w = 0 at the start, which is the mean.
    """

    def __init__(self, bert):
        super().__init__(bert)
        self.query = nn.Parameter(torch.zeros(bert.config.hidden_size))

    def forward(self, output, attention_mask):
        hidden_states = output["last_hidden_state"].float()
        # No matrix product, here nor in `Layers`: autocast would take it to bf16.
        scores = (hidden_states * self.query.float()).sum(-1) / self.query.shape[0] ** 0.5  # (B, T)
        # Finite, so that a row of padding alone gives no NaN; its weights are then taken back.
        weights = scores.masked_fill(attention_mask == 0, -1e9).softmax(dim=1) * attention_mask
        return (hidden_states * weights.unsqueeze(-1)).sum(dim=1)


class Layers(Cls):
    """γ Σ_l softmax(s)_l h_l, a learned mix of the means of all layers (Peters et al. 2018, equation 1).

    l runs over the embeddings and the L layers. s = 0 but for the last layer's, so that nearly the last layer's mean
    (99 %) is what training starts from; γ = 1.
    """

    def __init__(self, bert):
        super().__init__(bert)
        L = len(bert.bert_layers)
        scores = torch.zeros(L + 1)
        scores[-1] = torch.log(torch.tensor(99.0 * L))
        self.scores, self.scale = nn.Parameter(scores), nn.Parameter(torch.ones(()))

    def forward(self, output, attention_mask):
        means = torch.stack([mean_of(states, attention_mask) for states in output["hidden_states"]])  # (L + 1, B, C)
        weights = self.scores.float().softmax(dim=0)[:, None, None]  # (L + 1, 1, 1)
        return self.scale * (weights * means).sum(dim=0)


@contextmanager
def hidden_states_of(bert):
    """Yield a list that a pass of `bert` within the context fills with its embeddings and every layer's output."""
    states, skip = [], getattr(bert, "prepended", 0)  # states of a prompt, which are no token's
    first = bert.bert_layers[0].register_forward_pre_hook(lambda layer, inputs: states.append(inputs[0][:, skip:]))
    hooks = [layer.register_forward_hook(lambda layer, inputs, output: states.append(output[:, skip:]))
             for layer in bert.bert_layers]
    try:
        yield states
    finally:
        for hook in (first, *hooks):
            hook.remove()


CLS = Technique(
    "cls", Cls, paper="Devlin et al. 2019, arxiv.org/abs/1810.04805",
    does="The first token's last hidden state.",
    use="The default. MiniLM was trained with the mean: cls has .680 on a tenth, mean .691.",
    aka=("first", "first-token"))
POOLER = Technique(
    "pooler", Pooler, paper="Devlin et al. 2019, arxiv.org/abs/1810.04805",
    does="BERT's own pooler: tanh of a linear layer over the first token.",
    use="With weights whose pooler was trained: bert-base's was, MiniLM's was not. Not measured.",
    aka=("tanh", "pooled"))
MEAN = Technique(
    "mean", Mean, paper="Reimers and Gurevych 2019, section 3, arxiv.org/abs/1908.10084",
    does="The mean over real tokens.",
    use="For MiniLM, and for encodings that are compared: .691 on a tenth, cls has .680.",
    aka=("average", "avg"))
MAX = Technique(
    "max", Max, paper="Reimers and Gurevych 2019, section 3, arxiv.org/abs/1908.10084",
    does="The largest value of each component over real tokens.",
    use="To compare. It hurt on a tenth of the rows (.674, mean .691).", aka=("maximum",))
ATTENTION = Technique(
    "attention", Attention, paper="Lin et al. 2017, arxiv.org/abs/1703.03130",
    does="A weighted mean over real tokens, the weights learned; it starts as the mean.",
    use="With many rows. No clear effect over the mean on a tenth of the rows.",
    aka=("weighted", "attentive"), has_weights=True)
LAYERS = Technique(
    "layers", Layers, paper="Peters et al. 2018, equation 1, arxiv.org/abs/1802.05365",
    does="A learned mix of all layers' means; it starts as the last layer's.",
    use="With a frozen encoder, whose best layer may not be the last. No clear effect otherwise.",
    aka=("elmo", "scalar-mix", "mix"), has_weights=True, needs_layers=True)
