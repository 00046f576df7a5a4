"""What LoRA, DoRA and (IA)³ share: a linear layer that learns a change which can be merged, and where to put it."""

import torch
import torch.nn as nn

from extensions.encoder import chosen_layers, replace_modules


class AdaptedLinear(nn.Linear):
    """A linear layer over the parameters of an existing one; subclasses add parameters that change what it computes.

    They say it twice: `adapted(x)` is the output, and `effective()` the (weight, bias) of a plain layer with that
    output. While merged, the layer is that plain one, in its state_dict too.
    """

    def __init__(self, linear):
        nn.Module.__init__(self)  # the parent's would draw new weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("weight_before", None, persistent=False)
        self.register_buffer("bias_before", None, persistent=False)

    @property
    def merged(self):
        return self.weight_before is not None

    def forward(self, x):
        """Map x (..., in_features) to (..., out_features)."""
        if not self.merged:
            return self.adapted(x)
        if self.training:
            raise RuntimeError("what the adapters learned is merged into the weights: unmerge(model) before training")
        return super().forward(x)

    @torch.no_grad()
    def merge(self):
        """Let the weight and the bias be the effective ones; keep what they were."""
        with torch.autocast(self.weight.device.type, enabled=False):
            weight, bias = self.effective()
        self.weight_before = self.weight.clone()
        self.weight.copy_(weight)
        if self.bias is not None:
            self.bias_before = self.bias.clone()
            self.bias.copy_(bias)

    @torch.no_grad()
    def unmerge(self):
        """Put back the weight and the bias from before the merge, bit by bit."""
        self.weight.copy_(self.weight_before)
        if self.bias is not None:
            self.bias.copy_(self.bias_before)
        self.weight_before = self.bias_before = None

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            for name in self._parameters.keys() - {"weight", "bias"}:
                del destination[prefix + name]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.merged:
            raise RuntimeError(f"{prefix.rstrip('.')} is merged: unmerge(model) before loading weights into it")
        super()._load_from_state_dict(state_dict, prefix, *args)


def adapt_linears(bert, endings, layers, make):
    """Put make(linear) in the place of the linear layers whose names below an encoder layer have one of the endings.

    Also of those within a module of such a name, and below a layer within a layer, as per-task layers have them. Raises
    ValueError when there is none, and when another technique has replaced one.
    """
    chosen = {str(i) for i in chosen_layers(bert, layers)}

    def fits(name, child):
        layer, _, below = name.partition(".")
        if layer not in chosen or not isinstance(child, nn.Linear) or getattr(child, "is_new", False) or not any(
                f".{ending}." in f".{below}." for ending in endings):
            return False
        if isinstance(child, AdaptedLinear):
            raise ValueError(f"layer {layer}'s {below} is a {type(child).__name__} already: leave one of the two out, "
                             "or give them different targets or layers")
        if type(child) is not nn.Linear:
            raise ValueError(f"another technique has made layer {layer}'s {below} a {type(child).__name__}: name this "
                             "one first, or let the two have different targets")
        return True

    replace_modules(bert.bert_layers, fits, make)


def adapted_linears(model, merged):
    """Return the adapted layers of a model, which all must be `merged` or not; ValueError otherwise, or if none is."""
    found = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    if not found:
        raise ValueError("nothing here can be merged: no layer has LoRA, DoRA or (IA)³")
    if any(module.merged != merged for module in found):
        raise ValueError("the model is not merged" if merged else "the model is merged already")
    return found


def merge(model):
    """Merge what adapters learned into the weights, for evaluation and export at the speed and with the keys of BERT.

    The outputs stay the same up to rounding. Raises ValueError when the model is merged already.
    """
    for module in adapted_linears(model, merged=False):
        module.merge()


def unmerge(model):
    """Undo `merge`, bit by bit: the weights of before are kept until then. ValueError when the model is not merged."""
    for module in adapted_linears(model, merged=True):
        module.unmerge()
