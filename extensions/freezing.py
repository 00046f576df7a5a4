"""Layers that are not trained, for good or until their epoch.

Gradual unfreezing is ULMFiT's (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.3).
"""

import re

from extensions._encoder import attach, chosen_layers, is_frozen, loaded_parameters

EMBEDDINGS = re.compile(r"\w*embedding\.|embed_layer_norm\.")


def freeze_layers(bert, layers="first-3", embeddings=True):
    """Freeze what was loaded of some layers, by default the lowest and the embeddings below them.

    `layers` is all, first-N, mid-N or last-N, or none for the embeddings alone. Gradients are computed down to the
    lowest layer that is trained, and no further. What techniques have added stays trainable. Raises ValueError for
    another word, or when it would freeze nothing.
    """
    chosen = [] if layers == "none" else chosen_layers(bert, layers)
    if not (chosen or embeddings):
        raise ValueError("layers=none,embeddings=false: this freezes nothing")
    loaded = {id(p) for p in loaded_parameters(bert)}
    prefixes = tuple(f"bert_layers.{i}." for i in chosen)
    found = [p for name, p in bert.named_parameters() if id(p) in loaded and p.requires_grad and (
        name.startswith(prefixes) or (embeddings and EMBEDDINGS.match(name)))]
    if not found:
        raise ValueError("this freezes nothing that is trained: choose other layers, or leave it out; what adds parts "
                         "to layers takes layers= itself")
    for p in found:
        p.requires_grad_(False)


class GradualUnfreezing:
    """What is trained of `bert` in each epoch, among what is to be trained at the first epoch's start."""

    def __init__(self, bert, per_epoch):
        self.bert, self.per_epoch = bert, per_epoch
        self.trainable = None

    def start_epoch(self, epoch):
        """Train, of L layers over the embeddings, the (epoch + 1) per_epoch topmost; epochs count from 0.

        Parameters that are frozen get no gradient, and every optimizer here passes those over: neither their values,
        nor their moments, nor their step counts move.
        """
        if self.trainable is None:  # other techniques have frozen what they freeze by now
            # What several layers share has a name in each, and the highest one's counts: it comes last.
            self.trainable = [(name, p) for name, p in self.bert.named_parameters(remove_duplicate=False)
                              if p.requires_grad]
        lowest = len(self.bert.bert_layers) - (epoch + 1) * self.per_epoch  # below 0: the embeddings too
        for name, p in self.trainable:
            layer = re.match(r"bert_layers\.(\d+)\.", name)
            height = int(layer[1]) if layer else -1 if EMBEDDINGS.match(name) else lowest
            p.requires_grad_(height >= lowest)


def gradual_unfreezing(bert, per_epoch=1):
    """Train the top layer in the first epoch, and `per_epoch` layers more from each epoch on to the next.

    The pooler and what stands beside the layers are trained throughout, the embeddings count as the lowest layer. The
    paper begins with its own last layer, the classifier, alone; here the heads and the top layer begin together, the
    heads being linear. With fewer epochs than layers the lowest are never trained. The first epoch's set is put up
    when it begins, so that an optimizer made before has them all. Raises ValueError when nothing is left to unfreeze.
    """
    if per_epoch < 1:
        raise ValueError(f"per_epoch={per_epoch}: at least one layer an epoch")
    if is_frozen(bert):
        raise ValueError("there is nothing to unfreeze, the encoder is not trained: choose --option finetune")
    attach(bert, GradualUnfreezing(bert, per_epoch))
