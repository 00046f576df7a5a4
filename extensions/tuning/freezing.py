"""Layers that are not trained, for good or until their epoch.

Gradual unfreezing is ULMFiT's (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.3).
"""

from extensions.encoder import EncoderTechnique, attach, chosen_layers, height_of, is_frozen, loaded_parameters
from extensions.technique import Layers, Range, Technique


def freeze_layers(bert, layers="first-3", embeddings=True):
    """Freeze what was loaded of some layers, by default the lowest and the embeddings below them.

    `layers` is all, first-N, mid-N or last-N, or none for the embeddings alone. Gradients are computed down to the
    lowest layer that is trained, and no further. What techniques have added stays trainable. Raises ValueError when it
    would freeze nothing.
    """
    chosen = [] if layers == "none" else chosen_layers(bert, layers, others="all, none")
    L, loaded = len(bert.bert_layers), {id(p) for p in loaded_parameters(bert)}
    prefixes = tuple(f"bert_layers.{i}." for i in chosen)
    found = [p for name, p in bert.named_parameters() if id(p) in loaded and p.requires_grad and (
        name.startswith(prefixes) or (embeddings and height_of(name, L) == 0))]
    if not found:
        raise ValueError("this freezes nothing that is trained: choose other layers, or leave it out; what adds parts "
                         "to layers takes layers= itself")
    for p in found:
        p.requires_grad_(False)


def require_something_to_freeze(layers, embeddings):
    """Raise ValueError for options that name nothing."""
    if layers == "none" and not embeddings:
        raise ValueError("this freezes nothing; choose layers, or leave embeddings=false out")


class GradualUnfreezing(EncoderTechnique):
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
        L = len(self.bert.bert_layers)
        for name, p in self.trainable:
            p.requires_grad_(height_of(name, L) > L - (epoch + 1) * self.per_epoch)


def gradual_unfreezing(bert, per_epoch=1):
    """Train the top layer in the first epoch, and `per_epoch` layers more from each epoch on to the next.

    The pooler and what stands beside the layers are trained throughout, the embeddings count as the lowest layer. The
    paper begins with its own last layer, the classifier, alone; here the heads and the top layer begin together. With
    fewer epochs than layers the lowest are never trained. The first epoch's set is put up when it begins, so that an
    optimizer made before has them all. Raises ValueError when nothing is left to unfreeze.
    """
    if is_frozen(bert):
        raise ValueError("there is nothing to unfreeze, the encoder is not trained: choose --option finetune")
    attach(bert, GradualUnfreezing(bert, per_epoch))


FREEZE = Technique(
    "freeze", freeze_layers, paper="Lee, Tang and Lin 2019, arxiv.org/abs/1911.03090",
    does="Freezes some layers, by default the lowest three and the embeddings.",
    use="For speed and memory. The lower half frozen cost .023 on a tenth of the rows (.668).",
    aka=("freeze-layers", "freezing"), likely={"n": "layers"}, valid={"layers": Layers(("all", "none"))},
    check=require_something_to_freeze)
GRADUAL_UNFREEZING = Technique(
    "gradual-unfreezing", gradual_unfreezing, paper="Howard and Ruder 2018, section 3.3, arxiv.org/abs/1801.06146",
    does="Trains the top layer in the first epoch, and more layers in each epoch after it.",
    use="With many epochs, when fine-tuning forgets. With three it hurt on a tenth (.677).",
    aka=("unfreeze", "unfreezing", "ulmfit", "gradual"), valid={"per_epoch": Range(1)},
    likely={"layers": "per_epoch", "layers_per_epoch": "per_epoch", "n": "per_epoch"})
