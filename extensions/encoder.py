"""What techniques that change a loaded encoder share: what to freeze, which layers, and what they bring along."""

import re
from functools import cache

import torch.nn as nn


def loaded_parameters(bert):
    """Return the parameters of `bert` as they were loaded: those that no technique has added, a list.

    It is kept at the first call, which is to come before the first change.
    """
    if "of_pretraining" not in vars(bert):
        bert.of_pretraining = list(bert.parameters())
    return bert.of_pretraining


def freeze(bert):
    """Freeze what was loaded, but not what techniques have added; return `bert`.

    Only the first call does: later ones leave alone what a technique trains of it.
    """
    if not vars(bert).get("frozen"):
        for parameter in loaded_parameters(bert):
            parameter.requires_grad_(False)
        bert.frozen = True
    return bert


def is_frozen(module):
    """Tell whether nothing of a module is trained."""
    return not any(p.requires_grad for p in module.parameters())


def attach(bert, technique):
    """Let an object take part in the training of `bert`, by those of these methods that it has.

    of_weights(model): a loss of the weights, added to every step's. start_epoch(epoch): called before an epoch's first
    step (again, when a run is resumed within it). report(model): a line of text about the model that a scoring scores,
    printed after it, and kept in metrics.jsonl and beside the checkpoint.
    """
    vars(bert).setdefault("techniques", []).append(technique)


def techniques_of(model, method):
    """Return the techniques attached to a model's encoder that have a method of that name, a list."""
    return [technique for technique in vars(getattr(model, "bert", model)).get("techniques", [])
            if hasattr(technique, method)]


def chosen_layers(bert, layers, option="layers", others="all"):
    """Return the indices of the layers that a word names: all, first-N, mid-N or last-N (Peng, Yuan and Wang 2024).

    mid-N of L layers begins with layer (L - N) // 2, from 0. Raises ValueError for another word, or too large an N; it
    names the `option` and the `others` that the technique takes beside first-N, mid-N and last-N.
    """
    L = len(bert.bert_layers)
    if layers == "all":
        return list(range(L))
    match = re.fullmatch(r"(first|mid|last)-(\d+)", str(layers))
    if not match or not 1 <= int(match[2]) <= L:
        raise ValueError(f"{option}={layers}: choose {others}, first-N, mid-N or last-N, with N from 1 to {L}")
    n = int(match[2])
    start = {"first": 0, "mid": (L - n) // 2, "last": L - n}[match[1]]
    return list(range(start, start + n))


def height_of(name, L):
    """Return where a parameter of an encoder of L layers is: 0 in the embeddings, 1..L in a layer, L beside them."""
    layer = re.match(r"bert_layers\.(\d+)\.", name)
    if layer:
        return int(layer[1]) + 1
    return 0 if re.match(r"\w*(embedding|embed_layer_norm)\.", name) else L


def replace_modules(root, fits, make):
    """Put make(child) in the place of every submodule of `root` for which fits(full name, child); return the new ones.

    Raises ValueError when there is none.
    """
    replaced = []
    for path, parent in list(root.named_modules()):
        for name, child in list(parent.named_children()):
            if fits(f"{path}.{name}" if path else name, child):
                new = make(child).train(child.training)
                if isinstance(parent, nn.ModuleList):
                    parent[int(name)] = new
                else:
                    setattr(parent, name, new)
                replaced.append(new)
    if not replaced:
        raise ValueError("nothing is left for it to replace: another technique has taken the place of all these parts")
    return replaced


# ---- A technique may override methods of a module that is already there, which keeps its parts and checkpoint keys.


@cache
def overlaid(kind, behaviour):
    """Return the class of modules of class `kind` in which what `behaviour` overrides comes first."""
    name = f"{behaviour.__name__}{kind.__name__}"
    return behaviour if issubclass(behaviour, kind) else type(name, (behaviour, kind), {"__doc__": behaviour.__doc__})


@cache
def underlaid(kind, behaviour):
    """Return the class of modules of class `kind` in which what `behaviour` overrides comes after what `kind` does."""
    name = f"{behaviour.__name__}{kind.__name__}"
    return behaviour if issubclass(behaviour, kind) else type(name, (kind, behaviour), {"__doc__": kind.__doc__})


def overlay(module, behaviour, lay=overlaid, **attributes):
    """Make `module` a `behaviour` too, and give it the attributes. Raises ValueError when it is one already.

    With lay=underlaid what the module's class overrides comes before the behaviour.
    """
    if isinstance(module, behaviour):
        raise ValueError("it is there already: name it once")
    module.__class__ = lay(type(module), behaviour)
    for name, value in attributes.items():
        setattr(module, name, value)


def is_final(module):
    """Tell whether a faster module of the engine has taken this module's place, so that no technique may follow."""
    return any(vars(kind).get("final", False) for kind in type(module).__mro__)
