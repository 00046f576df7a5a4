"""Layer-wise decreasing learning rate (Sun et al. 2019, https://arxiv.org/abs/1905.05583, section 5.3.4)."""

import re

from extensions.parameter_groups import no_decay_split


def layerwise(model, lr, weight_decay=0.01, decay=0.95):
    """Return groups in which each layer learns `decay` times as fast as the one above it.

    The paper's eta^(k-1) = xi eta^k, with xi = `decay`: of L layers the top one, the pooler and the heads have
    `lr`, layer k counted from the bottom has lr decay^(L - k), and the embeddings lr decay^L. Biases and layer
    norms are without weight decay.
    """
    L = len(model.bert.bert_layers)
    depths = {}  # layers below the top -> parameters
    for name, p in model.named_parameters():
        layer = re.match(r"bert\.bert_layers\.(\d+)\.", name)
        if layer:
            depth = L - 1 - int(layer[1])
        else:
            depth = L if re.match(r"bert\.\w*(embedding|embed_layer_norm)\.", name) else 0
        if p.requires_grad:
            depths.setdefault(depth, []).append(p)
    return [group for depth, params in sorted(depths.items())
            for group in no_decay_split(params, lr * decay**depth, weight_decay)]
