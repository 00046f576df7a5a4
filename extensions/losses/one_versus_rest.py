"""One binary classifier a class (Rifkin and Klautau 2004, "In defense of one-vs-all classification")."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from extensions.technique import Technique


class PriorOutput(nn.Linear):
    """A linear layer whose bias makes each of K classes as likely as one in K at first: -log(K - 1) (Lin et al. 2017).

    https://arxiv.org/abs/1708.02002, section 4.1. From 0, the rest being K - 1 times as many, it would have to learn
    that before anything else, at the small steps of an encoder's learning rate.
    """

    def __init__(self, in_features, classes):
        super().__init__(in_features, classes)
        nn.init.constant_(self.bias, -math.log(classes - 1))

    @staticmethod
    def decision(logits):
        """Return the logits (B, K): the most confident classifier decides."""
        return logits


def one_versus_rest(forward):
    """Return the mean, over rows and classes, of -log σ(z_k) of the class in the labels and -log σ(-z_k) of the others.

    The logits z are (B, K); the decision is the most confident classifier, their argmax, as with a softmax;
    and the softmax is what R-Drop, SMART and Bregman compare, not the K classifiers' probabilities.
    """
    classes = torch.arange(forward.logits.shape[1], device=forward.logits.device)
    targets = (forward.labels.unsqueeze(1) == classes).float()  # (B, K)
    return F.binary_cross_entropy_with_logits(forward.logits, targets)


ONE_VERSUS_REST = Technique(
    "one-versus-rest", one_versus_rest, paper='Rifkin and Klautau 2004, "In defense of one-vs-all classification"',
    does="A binary classifier for each class; the most confident one decides.",
    use="Rather not in short runs: it hurt on a tenth of SST (accuracy .332, cross-entropy .404).",
    aka=("ovr", "one-vs-rest", "one-vs-all"), kinds=("classes",), needs={"output": "prior"}, not_with=("ordinal",))
