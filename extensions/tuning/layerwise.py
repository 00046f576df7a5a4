"""A learning rate for each layer, falling towards the embeddings or as given.

The former is Sun et al. 2019, https://arxiv.org/abs/1905.05583, section 5.3.4.
"""

import math

from extensions.encoder import height_of
from extensions.technique import Range, Technique
from extensions.tuning.parameter_groups import by_rate, is_head, no_decay_split
from files.errors import UserError


def layerwise(model, lr, weight_decay=0.01, decay=0.95, head=1.0):
    """Return groups in which each layer learns `decay` times as fast as the one above it.

    The paper's eta^(k-1) = xi eta^k, with xi = `decay`: of L layers the top one and the pooler have `lr`, layer k
    counted from the bottom has lr decay^(L - k), the embeddings lr decay^L, and the heads `head` times lr. Biases and
    layer norms are without weight decay.
    """
    L = len(model.bert.bert_layers)
    groups = by_rate(model, lambda name: lr * head if is_head(name) else
                     lr * decay ** (L - height_of(name.removeprefix("bert."), L)))
    # Nearest to lr first: the first group's is the learning rate that is logged.
    return [group for rate, params in sorted(groups.items(), key=lambda item: abs(item[0] - lr))
            for group in no_decay_split(params, rate, weight_decay)]


def require_rates(rates, **options):
    """Raise ValueError unless the words of `rates` are numbers of at least 0, or lr."""
    for rate in rates.split("+"):
        try:
            valid = rate == "lr" or 0 <= float(rate) < math.inf
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"rates must be numbers of at least 0, or lr, joined by +, not {rate!r}")


def per_layer(model, lr, weight_decay=0.01, rates="lr"):
    """Return groups with the learning rates that `rates` lists, joined by +, for instance 1e-6+5e-6+lr.

    They are those of the embeddings, of layers 1 to L, and of the heads; with one less, the heads have the top
    layer's, which the pooler always has; the word lr is --lr, and alone it is everybody's. At 0 a part stays as it is,
    but what freezes it saves its gradients too. Biases and layer norms are without weight decay. Raises UserError for
    another number of rates.
    """
    L = len(model.bert.bert_layers)
    listed = [lr if rate == "lr" else float(rate) for rate in rates.split("+")]
    if rates == "lr":
        listed *= L + 2
    if len(listed) not in (L + 1, L + 2):
        raise UserError(f"--param_groups per-layer:rates={rates}: give {L + 1} rates of at least 0, of the embeddings "
                        f"and of {L} layers, joined by +, and one more for the heads unless it is the last layer's")
    groups = by_rate(model, lambda name: listed[-1] if is_head(name) else
                     listed[height_of(name.removeprefix("bert."), L)])
    return [group for rate, params in groups.items() for group in no_decay_split(params, rate, weight_decay)]


LAYERWISE = Technique(
    "layerwise", layerwise, paper="Sun et al. 2019, section 5.3.4, arxiv.org/abs/1905.05583",
    does="Each layer learns `decay` times as fast as the one above it.",
    use="decay=0.85 with --lr 1e-4 is in the best recipe; +.007 over 5e-5 for all, one seed.",
    aka=("llrd", "layer-decay", "discriminative"), valid={"decay": Range(above=0, most=1)},
    likely={"xi": "decay", "layer_decay": "decay", "factor": "decay", "rate": "decay", "head_lr": "head"})
PER_LAYER = Technique(
    "per-layer", per_layer, paper="Peng, Yuan and Wang 2024",
    does="A learning rate for each layer, as listed.",
    use="To try rates by hand. Those measured on a tenth of the rows had no clear effect.",
    aka=("per-layer-lr", "by-layer"), likely={"lrs": "rates", "lr": "rates"}, check=require_rates)
