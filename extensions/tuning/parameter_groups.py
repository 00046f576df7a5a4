"""Which parameters share a learning rate and a weight decay."""

from extensions.technique import Technique


def trainable(model):
    """Return the parameters that training updates, a list."""
    return [p for p in model.parameters() if p.requires_grad]


def is_head(name):
    """Tell whether a parameter of a model is outside its encoder."""
    return not name.startswith("bert.")


def by_rate(model, rate_of):
    """Return {learning rate: its trainable parameters}; rate_of(name) is a parameter's, its encoder's come first.

    What several layers share has a name in each: the highest layer's counts.
    """
    groups, last = {}, {p: name for name, p in model.named_parameters(remove_duplicate=False)}
    for name, p in sorted(model.named_parameters(), key=lambda named: is_head(named[0])):
        if p.requires_grad:
            groups.setdefault(rate_of(last[p]), []).append(p)
    return groups


def no_decay_split(params, lr, weight_decay):
    """Return a group of matrices with weight decay, one of vectors (biases and norms) without; neither is empty."""
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def flat(model, lr, weight_decay=0.0, head=1.0):
    """Return one group of all trainable parameters, or a second one of the heads, with `head` times the rate."""
    groups = by_rate(model, lambda name: lr * head if is_head(name) else lr)
    return [{"params": params, "lr": rate, "weight_decay": weight_decay} for rate, params in groups.items()]


def no_decay(model, lr, weight_decay=0.01, head=1.0):
    """Return groups in which biases and layer norms have no weight decay, as BERT's own optimizer has them.

    Devlin et al. 2019, appendix A.2, and the code released with it. The heads have `head` times the learning rate.
    """
    groups = by_rate(model, lambda name: lr * head if is_head(name) else lr)
    return [group for rate, params in groups.items() for group in no_decay_split(params, rate, weight_decay)]


FLAT = Technique(
    "flat", flat, paper="Loshchilov and Hutter 2019, arxiv.org/abs/1711.05101",
    does="Weight decay and one learning rate for all parameters, or another for the heads.",
    use="As the course has it. No clear effect against no-decay on a tenth of the rows.",
    aka=("all", "single", "one"), likely={"head_lr": "head", "lr_multiplier": "head", "head_multiplier": "head"})
NO_DECAY = Technique(
    "no-decay", no_decay, paper="Devlin et al. 2019, appendix A.2, arxiv.org/abs/1810.04805",
    does="No weight decay for biases and layer norms.", use="The default, and with few trained weights.",
    aka=("bert", "no-bias-decay"), likely={"head_lr": "head", "lr_multiplier": "head", "head_multiplier": "head"})
