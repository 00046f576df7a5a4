"""One binary classifier a class (Rifkin and Klautau 2004, "In defense of one-vs-all classification")."""

import torch
import torch.nn.functional as F


def one_versus_rest(model, batch):
    """Return the mean, over rows and classes, of -log σ(z_k) of the class in the labels and -log σ(-z_k) of the others.

    The logits z are (B, K); the decision is the most confident classifier, their argmax, as with a softmax.
    """
    batch["logits"] = model.logits(batch).float()
    classes = torch.arange(batch["logits"].shape[1], device=batch["logits"].device)
    targets = (batch["labels"].unsqueeze(1) == classes).float()  # (B, K)
    return F.binary_cross_entropy_with_logits(batch["logits"], targets)


one_versus_rest.tasks = ("sst",)
one_versus_rest.not_with = ("ordinal",)
