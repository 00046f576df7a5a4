"""The table of contents of the techniques: one technique a file, one dict a seam.

Scripts look a name up here and nowhere else; on the command line a technique is named by a spec such as
`layerwise:decay=0.85`, the keys being the keyword arguments of its function:

    PARAMETER_GROUPS   fn(model, lr, weight_decay, ...) which parameters share learning rate and weight decay
    TASK_LOSSES        fn(model, batch) -> loss         a batch knows its task: batch["task"]
    PENALTIES          fn(model, batch, logits) -> loss a regularizer; batch["loss"] is the task's loss function
    GRADIENTS          fn(losses, params)               writes .grad from {task: loss}
    SCHEDULES          cls(loaders, seed)(epoch)        an epoch's Steps of {task: batch}
    ENGINE             what engine.py applies by flags of its own: --ema, --compile
"""

import inspect
import math
from functools import partial

from extensions.cuda_graphs import GraphedStep
from extensions.ema import ExponentialMovingAverage
from extensions.fast_dropout import use_fast_dropout
from extensions.fused_adamw import FusedAdamW
from extensions.gradient_sum import gradient_sum
from extensions.layerwise import layerwise
from extensions.packed_attention import pack_attention
from extensions.parameter_groups import flat, no_decay
from extensions.proportional import Proportional
from extensions.rdrop import rdrop
from extensions.supervised_losses import bce, ce, mse
from files import nearest

PARAMETER_GROUPS = {"flat": flat, "no-decay": no_decay, "layerwise": layerwise}
TASK_LOSSES = {"ce": ce, "bce": bce, "mse": mse}
PENALTIES = {"rdrop": rdrop}
GRADIENTS = {"sum": gradient_sum}
SCHEDULES = {"proportional": Proportional}
ENGINE = {"ema": ExponentialMovingAverage, "fused-adamw": FusedAdamW, "packed-attention": pack_attention,
          "fast-dropout": use_fast_dropout, "graphs": GraphedStep}


def parse_value(text):
    """Return the number, boolean or bare word that a value of a spec spells."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def from_spec(spec, table):
    """Return the technique that `NAME[:KEY=VALUE,...]` names in `table`, with its options bound.

    Raises ValueError naming what would be valid, and what is nearest, for an unknown name or key, a key that is there
    twice, and a value of another kind than the default: a number must be finite, and must not be below 0.
    """
    name, _, options = spec.partition(":")
    if name not in table:
        raise ValueError(f"{spec!r}: no {name!r}; choose one of {', '.join(table)}{nearest(name, table)}")
    parameters = inspect.signature(table[name]).parameters.values()
    # weight_decay has a flag of its own.
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "weight_decay"}
    valid = ", ".join(f"{key} (default {default})" for key, default in defaults.items()) or "no options"
    values = {}
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        if key not in defaults or key in values:
            again = " once" if key in values else ""
            raise ValueError(f"{spec!r}: {name} takes {valid}{again}{nearest(key, set(defaults) - set(values))}")
        value, kind = parse_value(text), type(defaults[key])
        if text == "" or not (type(value) is kind or (kind, type(value)) == (float, int)):
            raise ValueError(f"{spec!r}: {name} takes {valid}, and {text!r} is no value of that kind")
        if kind in (int, float) and not 0 <= value < math.inf:
            raise ValueError(f"{spec!r}: {key} must be a finite number of at least 0")
        values[key] = value
    return partial(table[name], **values)
