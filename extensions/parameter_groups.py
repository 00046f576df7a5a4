"""Which parameters share a learning rate and a weight decay."""


def flat(model, lr, weight_decay=0.0):
    """Return one group of all trainable parameters."""
    return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": lr, "weight_decay": weight_decay}]


def no_decay(model, lr, weight_decay=0.01):
    """Return two groups: matrices with weight decay, and biases and layer norms (vectors) without.

    As the BERT paper's own optimizer does (Devlin et al. 2019, appendix A.2, and its released code).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
    ]
