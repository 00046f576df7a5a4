"""What techniques that change a loaded encoder share: what to freeze, which layers, and what they bring along."""

import re
from functools import cache

from extensions.hooks import Hooks


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


class EncoderTechnique(Hooks):
    """What takes part in the training of an encoder; a subclass overrides what it needs."""

    def of_weights(self, model):
        """Return a loss of the weights, 0-dim, that is added to every step's."""

    def start_epoch(self, epoch):
        """Prepare an epoch (from 0) before its first step; again when a run is resumed within it."""

    def report(self, model):
        """Return a line about a model that is scored: printed, and kept in metrics.jsonl and beside the checkpoint."""


def attach(bert, technique):
    """Let an `EncoderTechnique` take part in the training of `bert`."""
    vars(bert).setdefault("techniques", []).append(technique)


def techniques_of(model, method):
    """Return the techniques attached to a model's encoder that override this method of `EncoderTechnique`, a list."""
    default = getattr(EncoderTechnique, method)
    return [technique for technique in vars(getattr(model, "bert", model)).get("techniques", [])
            if getattr(type(technique), method) is not default]


def takes_task(bert):
    """Tell whether an encoder has a part for each task, so that every pass must name the task."""
    return vars(bert).get("takes_task", False)


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
                replaced.append(make(child).train(child.training))
                setattr(parent, name, replaced[-1])
    if not replaced:
        raise ValueError("nothing is left for it to replace: another technique has taken the place of all these parts")
    return replaced


# ---- A technique may override methods of a module that is already there, which keeps its parts and checkpoint keys.


def overlay(module, behaviour, **attributes):
    """Make `module` a `behaviour` too, and give it the attributes. Raises ValueError when it is one already."""
    change_class(module, behaviour, (behaviour, type(module)), attributes)


def underlay(module, behaviour, **attributes):
    """As `overlay`, but what the module's own class overrides comes before what `behaviour` does."""
    change_class(module, behaviour, (type(module), behaviour), attributes)


@cache
def combined(name, bases):
    """Return the class of that name which has these bases, the same for every module."""
    return type(name, bases, {"__doc__": bases[0].__doc__})


def change_class(module, behaviour, bases, attributes):
    """Give a module the class that its own and `behaviour` make, in the order of `bases`, and the attributes."""
    if isinstance(module, behaviour):
        raise ValueError("it is there already: name it once")
    kind = type(module)
    module.__class__ = (behaviour if issubclass(behaviour, kind)
                        else combined(f"{behaviour.__name__}{kind.__name__}", bases))
    for name, value in attributes.items():
        setattr(module, name, value)


def is_final(module):
    """Tell whether a faster module of the engine has taken this module's place, so that no technique may follow."""
    return any(vars(kind).get("final", False) for kind in type(module).__mro__)
