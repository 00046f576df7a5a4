"""A learning rate for each layer, falling towards the embeddings or as given.

The former is Sun et al. 2019, https://arxiv.org/abs/1905.05583, section 5.3.4.
"""

import math

from extensions.encoder import height_of
from extensions.tuning.parameter_groups import by_rate, is_head, no_decay_split
from files.errors import UserError


def layerwise(model, lr, weight_decay=0.01, decay=0.95, head=1.0):
    """Return groups in which each layer learns `decay` times as fast as the one above it.

    The paper's eta^(k-1) = xi eta^k, with xi = `decay`: of L layers the top one and the pooler have `lr`, layer k
    counted from the bottom has lr decay^(L - k), the embeddings lr decay^L, and the heads `head` times lr. Biases and
    layer norms are without weight decay. Raises UserError for another decay.
    """
    if not 0 < decay <= 1:
        raise UserError(f"--param_groups layerwise:decay={decay}: give more than 0 and at most 1")
    L = len(model.bert.bert_layers)
    groups = by_rate(model, lambda name: lr * head if is_head(name) else
                     lr * decay ** (L - height_of(name.removeprefix("bert."), L)))
    # Nearest to lr first: the first group's is the learning rate that is logged.
    return [group for rate, params in sorted(groups.items(), key=lambda item: abs(item[0] - lr))
            for group in no_decay_split(params, rate, weight_decay)]


def per_layer(model, lr, weight_decay=0.01, rates="lr"):
    """Return groups with the learning rates that `rates` lists, joined by +, for instance 1e-6+5e-6+lr.

    They are those of the embeddings, of layers 1 to L, and of the heads; with one less, the heads have the top
    layer's, which the pooler always has; the word lr is --lr, and alone it is everybody's. At 0 a part stays as it is,
    but what freezes it saves its gradients too. Biases and layer norms are without weight decay. Raises UserError for
    another number of rates, and for one that is none.
    """
    L = len(model.bert.bert_layers)
    try:
        listed = [lr if rate == "lr" else float(rate) for rate in rates.split("+")]
    except ValueError:
        listed = [math.nan]
    if rates == "lr":
        listed *= L + 2
    if not all(0 <= rate < math.inf for rate in listed) or len(listed) not in (L + 1, L + 2):
        raise UserError(f"--param_groups per-layer:rates={rates}: give {L + 1} rates of at least 0, of the embeddings "
                        f"and of {L} layers, joined by +, and one more for the heads unless it is the last layer's")
    groups = by_rate(model, lambda name: listed[-1] if is_head(name) else
                     listed[height_of(name.removeprefix("bert."), L)])
    return [group for rate, params in groups.items() for group in no_decay_split(params, rate, weight_decay)]
