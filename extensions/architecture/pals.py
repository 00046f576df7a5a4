"""PALs: projected attention layers, a little attention per task beside every layer (Stickland and Murray 2019).

https://arxiv.org/abs/1902.02671. Legend:  B batch · T tokens · C hidden size · S size of the projection · H heads
"""

import torch.nn as nn
import torch.nn.functional as F

from bert import BertLayer
from extensions.technique import Range, Technique
from tasks import COURSE_TASKS


class ProjectedAttention(nn.Module):
    """Multi-head attention over S features without an output projection, as in section 3.2 of the paper."""

    def __init__(self, size, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))

    def forward(self, x, attention_mask):
        """Map x (B, T, S) under the additive mask (B, 1, 1, T) to (B, T, S)."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, S // H)
            for linear in (self.query, self.key, self.value))
        context = F.scaled_dot_product_attention(query, key, value, attention_mask,
                                                 self.dropout if self.training else 0.0)
        return context.transpose(1, 2).flatten(2)


class PALLayer(BertLayer):
    """A layer of BERT, its parts taken over, that adds the task's function before the last layer norm."""

    def __init__(self, layer, attentions, projections):
        nn.Module.__init__(self)  # the parent's would draw new weights
        for name, part in layer.named_children():
            setattr(self, name, part)
        self.interm_af = layer.interm_af
        self.attentions = attentions
        self.projections = [projections]  # in a list: the encoder owns them, once for all layers
        self.train(layer.training)

    def forward(self, hidden_states, attention_mask, task):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C), for one task."""
        projections = self.projections[0][task]
        projected = self.attentions[task](projections["encode"](hidden_states), attention_mask)  # (B, T, S)
        attended = self.self_attention(hidden_states, attention_mask)
        attended = self.add_norm(
            hidden_states, attended, self.attention_dense, self.attention_dropout, self.attention_layer_norm)
        widened = self.interm_af(self.interm_dense(attended))
        return self.add_norm(attended + projections["decode"](projected), widened, self.out_dense, self.out_dropout,
                             self.out_layer_norm)


def pals(bert, size=0, heads=12):
    """Give every layer a projected attention for each task; size 0 is the paper's 204 of 768, in proportion.

    h_{l+1} = LN(a_l + FFN(a_l) + TS(h_l)), with a_l the layer's attention output after its norm and TS(h) = V_D MH(V_E
    h). V_E (S, C) and V_D (C, S) are a task's own and the same in all layers; the attention is a task's and a layer's
    own. V_D = 0 at the start (the paper: small random numbers), so that training starts from the pretrained function.
    There are no biases and no GELU after V_D, which the authors' code has. The paper's schedule is `--schedule
    annealed`. Raises ValueError when another technique has replaced or appended layers.
    """
    if not all(type(layer) is BertLayer for layer in bert.bert_layers):
        raise ValueError("not all layers are plain layers any more: name pals before what appends layers, and not with "
                         "what replaces them")
    C, tasks = bert.config.hidden_size, getattr(bert, "tasks", COURSE_TASKS)
    size = size or max(1, round(204 / 768 * C / heads)) * heads
    bert.projections = nn.ModuleDict({task: nn.ModuleDict({
        "encode": nn.Linear(C, size, bias=False), "decode": nn.Linear(size, C, bias=False)}) for task in tasks})
    for i, layer in enumerate(bert.bert_layers):
        attentions = nn.ModuleDict({task: ProjectedAttention(size, heads, bert.config.attention_probs_dropout_prob)
                                    for task in tasks})
        attentions.apply(bert._init_weights)
        bert.bert_layers[i] = PALLayer(layer, attentions, bert.projections)
    bert.projections.apply(bert._init_weights)
    for projection in bert.projections.values():
        nn.init.zeros_(projection["decode"].weight)
    bert.takes_task = True


def require_whole_heads(size, heads):
    """Raise ValueError when `heads` does not divide `size`."""
    if size % heads:
        raise ValueError(f"size {size} must be a multiple of heads {heads}")


PALS = Technique(
    "pals", pals, paper="Stickland and Murray 2019, arxiv.org/abs/1902.02671",
    does="A little attention of its own for each task beside every layer.",
    use="With several tasks and all rows: +.004 there (one seed), no clear effect on a tenth.",
    aka=("pal", "projected-attention"), likely={"dim": "size", "num_heads": "heads", "hidden": "size"},
    valid={"heads": Range(1)}, check=require_whole_heads)
