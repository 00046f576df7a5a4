"""Dropout (Srivastava et al. 2014) with a probability of its own at each of the places where BERT has one."""

import torch.nn as nn

from files.errors import UserError

# site -> how the names of its modules in the encoder end; "head" is all dropout outside the encoder
DROPOUT_SITES = {"embedding": "embed_dropout", "attention": "self_attention.dropout",
                 "attention-output": "attention_dropout", "ffn-output": "out_dropout", "head": ""}


def site_of(name):
    """Return the site of the dropout module of that name in a model, None for one that a technique has added."""
    if name.split(".")[0] != "bert":
        return "head"
    # An adapter takes the place of the dropout that it then holds: bert_layers.0.out_dropout.dropout.
    return next((site for site, ending in DROPOUT_SITES.items()
                 if ending and name.endswith((f".{ending}", f".{ending}.dropout"))), None)


def set_dropout(model, probabilities):
    """Set the dropout probabilities of `model` by site, {site: p}; sites that are not named keep theirs.

    "attention" drops attention probabilities, "attention-output" and "ffn-output" what the two halves of a layer add
    to the residual stream. Raises UserError for another site, or a p outside [0, 1).
    """
    for site, p in probabilities.items():
        if site not in DROPOUT_SITES:
            raise UserError(f"there is no dropout at {site!r}; choose of {', '.join(DROPOUT_SITES)}")
        if not 0 <= p < 1:
            raise UserError(f"dropout at {site} must be at least 0 and below 1, not {p}")
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and site_of(name) in probabilities:
            module.p = float(probabilities[site_of(name)])
