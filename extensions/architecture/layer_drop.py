"""Fewer layers: at random in training (LayerDrop), or for good.

Fan, Grave and Joulin 2020, https://arxiv.org/abs/1909.11556.
"""

import torch
import torch.nn as nn

from extensions.encoder import chosen_layers, overlay
from extensions.technique import Layers, Range, Technique


class Droppable:
    """A layer that is left out of a pass in training with probability `drop_p`, the same for all its rows.

    Pairs that are encoded apart are several passes on a CPU: see `encode_apart`.

    The draw is a number on the device, and the layer's output and its input are both there to choose from: a branch on
    the host would wait for the device, and a captured graph would repeat it for ever. So no time is saved, unlike in
    the authors' code, and a layer that was left out gets a gradient of zeros. The draws come from torch's generator,
    whose state checkpoints keep.
    """

    tokenwise = True  # it treats tokens one by one: see engine/unpadded.py

    def forward(self, hidden_states, attention_mask, **options):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C)."""
        output = super().forward(hidden_states, attention_mask, **options)
        if not self.training or self.drop_p == 0:
            return output
        dropped = torch.rand((), device=output.device) < self.drop_p
        return torch.where(dropped, hidden_states, output)


def layer_drop(bert, p=0.1):
    """Leave out every layer of a training pass with probability p; in evaluation all are there, nothing is rescaled.

    The paper trains with 0.2, so that layers may be removed afterwards.
    """
    for layer in bert.bert_layers:
        overlay(layer, Droppable, drop_p=p)


def remove_layers(bert, keep="first-4"):
    """Keep those layers of `bert` that a word names: first-N, mid-N, last-N, or alternate (the first, third and so on).

    The others are removed for good; those that stay are numbered anew. `bert.config.num_hidden_layers` stays what the
    weights' architecture has: loading a checkpoint builds all layers and removes them again. Sajjad et al. 2020
    (https://arxiv.org/abs/2004.03844) compare the choices, and keeping the first ones serves best there. Raises
    ValueError when there are not so many, or nothing would be removed.
    """
    L = len(bert.bert_layers)
    kept = range(0, L, 2) if keep == "alternate" else chosen_layers(bert, keep, "keep", "alternate")
    if len(kept) == L:
        raise ValueError(f"keep={keep}: these are all of the {L} layers, and nothing would be removed")
    bert.bert_layers = nn.ModuleList([bert.bert_layers[i] for i in kept])


LAYER_DROP = Technique(
    "layer-drop", layer_drop, paper="Fan, Grave and Joulin 2020, arxiv.org/abs/1909.11556",
    does="Leaves out layers at random in training.",
    use="When layers are to be removed afterwards. It hurt on a tenth of the rows (.676, base .691).",
    aka=("layerdrop", "stochastic-depth", "drop-path"), likely={"prob": "p", "dropout": "p", "rate": "p"},
    valid={"p": Range(below=1)})
REMOVE_LAYERS = Technique(
    "remove-layers", remove_layers, paper="Sajjad et al. 2020, arxiv.org/abs/2004.03844",
    does="Keeps some layers and removes the others for good.",
    use="For speed: MiniLM's first four layers score as all six do, on a tenth and on all rows.",
    aka=("prune", "truncate", "drop-layers"), likely={"layers": "keep", "n": "keep"},
    valid={"keep": Layers(("alternate",))})
