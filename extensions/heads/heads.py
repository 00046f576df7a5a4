"""Heads: from an encoding to a task's logits.

`fn(in_features, hidden_size, out_features, dropout, ...)` is a module from (B, in_features) to (B, out_features), an
nn.Sequential whose last part is the linear output layer.
"""

import torch
import torch.nn as nn

from extensions.technique import OneOf, Range, Technique

ACTIVATIONS = {"relu": nn.ReLU, "leaky-relu": nn.LeakyReLU, "rrelu": nn.RReLU, "elu": nn.ELU, "selu": nn.SELU,
               "celu": nn.CELU, "gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "tanh": nn.Tanh,
               "none": nn.Identity}
MOST_LAYERS = 4


def hidden_layers(in_features, hidden_size, dropout, hidden, activation):
    """Return `hidden` times dropout, linear layer and activation, a list."""
    layers = []
    for i in range(hidden):
        layers += [nn.Dropout(dropout), nn.Linear(hidden_size if i else in_features, hidden_size),
                   ACTIVATIONS[activation]()]
    return layers


def mlp(in_features, hidden_size, out_features, dropout, hidden=1, activation="leaky-relu"):
    """Return a head of `hidden` hidden layers (Peng, Yuan and Wang 2024 searched 1 to 4 and nine activations)."""
    return nn.Sequential(*hidden_layers(in_features, hidden_size, dropout, hidden, activation), nn.Dropout(dropout),
                         nn.Linear(hidden_size if hidden else in_features, out_features))


class Relational(nn.Sequential):
    """A head whose hidden layers are one with those of another: paraphrase and similarity ask about the same relation.

    Both tasks train the trunk; each has an output layer of its own. `share` makes the trunk one.
    """

    def __init__(self, in_features, hidden_size, out_features, dropout, hidden=1, activation="leaky-relu"):
        super().__init__(nn.Sequential(*hidden_layers(in_features, hidden_size, dropout, hidden, activation)),
                         nn.Dropout(dropout), nn.Linear(hidden_size, out_features))

    def share(self, other):
        """Take over the trunk of `other`, a head of the same shape."""
        self[0] = other[0]


class CosineHead(nn.Module):
    """scale · cos(u, v) + bias, with scale and bias learned.

    Reimers and Gurevych 2019 (section 3) have the cosine alone. Losses of the cosine itself leave both where they
    begin; R-Drop, SMART and Bregman, which compare logits, move them.
    """

    # (scale, bias) at the start, of labels up to a maximum: duplicates lie above a cosine of one half.
    first = {"binary": lambda maximum: (10.0, -5.0), "real": lambda maximum: (float(maximum), 0.0)}

    def __init__(self, scale, bias):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(bias))

    def forward(self, u, v):
        return (self.scale * torch.cosine_similarity(u, v, dim=-1) + self.bias).unsqueeze(-1)  # (B, 1)


MLP = Technique(
    "mlp", mlp, paper="Peng, Yuan and Wang 2024",
    does="Dropout, linear layer and activation, `hidden` times, then the linear output.",
    use="The default. No or two hidden layers, or other activations, gained nothing on a tenth.",
    aka=("linear", "ffn", "dense"), valid={"hidden": Range(0, MOST_LAYERS), "activation": OneOf(ACTIVATIONS)},
    only_with={"activation": "hidden"}, likely={"layers": "hidden", "num_layers": "hidden", "depth": "hidden"})
RELATIONAL = Technique(
    "relational", Relational, paper="Caruana 1997, Multitask Learning",
    does="An mlp whose hidden layers two pair tasks share.",
    use="For paraphrase and similarity together. No clear effect on a tenth of the rows.",
    aka=("shared",), valid={"hidden": Range(1, MOST_LAYERS), "activation": OneOf(ACTIVATIONS)}, shared=True,
    likely={"layers": "hidden", "num_layers": "hidden", "depth": "hidden"})
