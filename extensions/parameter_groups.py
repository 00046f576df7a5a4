"""Which parameters share a learning rate and a weight decay."""


def trainable(model):
    """Return the parameters that training updates, a list."""
    return [p for p in model.parameters() if p.requires_grad]


def no_decay_split(params, lr, weight_decay):
    """Return two groups: matrices with weight decay, and vectors (biases and layer norms) without."""
    return [
        {"params": [p for p in params if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]


def flat(model, lr, weight_decay=0.0):
    """Return one group of all trainable parameters."""
    return [{"params": trainable(model), "lr": lr, "weight_decay": weight_decay}]


def no_decay(model, lr, weight_decay=0.01):
    """Return two groups, biases and layer norms without weight decay, as BERT's own optimizer has them.

    Devlin et al. 2019, appendix A.2, and the code released with it.
    """
    return no_decay_split(trainable(model), lr, weight_decay)
