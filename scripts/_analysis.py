"""What an encoder's layers and heads hold: probes, similarity of layers, entropy and importance of heads.

Legend of the shape comments:  N rows · B batch · T tokens · C hidden size · L layers · H heads · D = C // H
"""

import itertools
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bert import BertSelfAttention
from extensions.forward import ForwardPass


def linear_cka(x, y):
    """Return ‖Ỹᵀ X̃‖² / (‖X̃ᵀ X̃‖ ‖Ỹᵀ Ỹ‖) of representations (N, C) and (N, C') of the same rows, columns centred.

    Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414): 1 for representations that are equal up to rotation and
    one scale, 0 where no column of one correlates with one of the other, or where one is constant. With few rows it is
    too high: take several times as many as columns.
    """
    x, y = (z.double() - z.double().mean(dim=0) for z in (x, y))
    norm = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float((y.T @ x).square().sum() / norm) if norm > 0 else 0.0


def entropy(probabilities):
    """Return -Σ p ln p over the last dimension, in nats."""
    return torch.special.entr(probabilities).sum(-1)


def probe_accuracy(train, train_labels, dev, dev_labels):
    """Return the share of dev rows (N, C) whose class a logistic regression on training rows (M, C) tells."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    return float(probe.fit(train, train_labels).score(dev, dev_labels))


def probe_correlation(train, train_labels, dev, dev_labels):
    """Return Pearson's r of dev labels with what a ridge regression on training rows (M, C) predicts; 0 of a constant.

    Its penalty is that of 10⁻¹ to 10⁵ with the least error in leaving out one training row after the other.
    """
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
    predicted = probe.fit(train, train_labels).predict(dev)
    return float(np.corrcoef(predicted, dev_labels)[0, 1]) if np.ptp(predicted) and np.ptp(dev_labels) else 0.0


def attentions_of(bert):
    """Return for each layer a list of its self-attentions, one or one a task; layers without any are left out."""
    found = ([part for part in layer.modules() if isinstance(part, BertSelfAttention)] for layer in bert.bert_layers)
    return [parts for parts in found if parts]


@contextmanager
def head_entropies(bert):
    """Yield a list that a pass within the context fills: of each layer (B, H, T), every token's entropy over its keys.

    Whatever a technique makes of queries, keys and mask counts: it is read where torch computes the product.
    """
    found, inside, attend = [], [], F.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, *args, **kwargs):
        if inside:
            key_ = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # heads may share keys
            scores = query.float() @ key_.float().transpose(-1, -2) * query.shape[-1] ** -0.5
            found.append(entropy((scores if attn_mask is None else scores + attn_mask.float()).softmax(-1)))
        return attend(query, key, value, attn_mask, *args, **kwargs)

    hooks = []
    for attention in itertools.chain(*attentions_of(bert)):
        hooks.append(attention.register_forward_pre_hook(lambda *_: inside.append(True)))
        hooks.append(attention.register_forward_hook(lambda *_: inside.clear()))
    F.scaled_dot_product_attention = watched
    try:
        yield found
    finally:
        F.scaled_dot_product_attention = attend
        for hook in hooks:
            hook.remove()


def sum_over_tokens(values, attention_mask):
    """Return the sum of values (B, H, T) over the real tokens, those of attention_mask (B, T): (H,)."""
    return (values * attention_mask[:, None]).sum(dim=(0, 2))


@contextmanager
def gated_heads(bert, gate_of):
    """Multiply every head's output by a gate: `gate_of(l, output)` is (H,) or (B, H) for the l-th attention's output.

    By hooks, within the context.
    """
    def hook(index):
        def gate(attention, inputs, output):  # (B, T, C)
            heads = output.unflatten(-1, (attention.num_attention_heads, -1))  # (B, T, H, D)
            gates = gate_of(index, output)
            return (heads * (gates if gates.ndim == 1 else gates[:, None])[..., None]).flatten(2)
        return gate

    hooks = [attention.register_forward_hook(hook(i)) for i, parts in enumerate(attentions_of(bert))
             for attention in parts]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def head_importance(model, task, batches, loss):
    """Return the mean over rows of |∂ loss / ∂ gate| of every head's gate, at 1: a list of each layer's, (H,).

    Michel, Levy and Neubig 2019 (https://arxiv.org/abs/1905.10650, equation 2), without dropout. `loss(forward)`
    is a mean over the batch's rows. Of a pair in two sequences each is a row of its own; a loss of the batch as a whole
    gives each row's share of it.
    """
    attentions = [parts[0] for parts in attentions_of(model.bert)]  # all of a layer have as many heads
    total, rows = [torch.zeros(attention.num_attention_heads) for attention in attentions], 0
    model.eval()
    for batch in batches:
        gates = []

        def new(index, output, gates=gates):
            gate = torch.ones(len(output), attentions[index].num_attention_heads, device=output.device,
                              dtype=output.dtype, requires_grad=True)  # (B, H)
            gates.append((index, gate))
            return gate

        with gated_heads(model.bert, new):
            # A row's gate bears on its own part of the sum.
            value = loss(ForwardPass(model, task, batch)) * len(batch["sent_ids"])
        for (index, _), grad in zip(gates, torch.autograd.grad(value, [gate for _, gate in gates]), strict=True):
            total[index] += grad.abs().sum(0).cpu()
        rows += len(batch["sent_ids"])
    return [layer / rows for layer in total]


def pruning_order(importance):
    """Return all (layer, head), the least important first, each layer's importance (H,) scaled to an L2 norm of 1.

    That scaling is the paper's (section 4.1).
    """
    heads = [(index, head) for index, layer in enumerate(importance) for head in range(len(layer))]
    scaled = torch.cat([layer / layer.norm().clamp(min=1e-30) for layer in importance])
    return [heads[i] for i in scaled.argsort(stable=True).tolist()]


def kept_heads(order, share):
    """Return each layer's gates (H,), with the first `share` of the heads in `order` at 0, the others at 1."""
    layers = [layer for layer, _ in order]
    gates = [torch.ones(layers.count(layer)) for layer in range(max(layers) + 1)]
    for layer, head in order[: round(share * len(order))]:
        gates[layer][head] = 0
    return gates
