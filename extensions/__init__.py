"""The table of contents of the techniques: one technique a file, one dict a seam.

Scripts look a name up here and nowhere else; on the command line a technique is named by a spec such as
`layerwise:decay=0.85`, the keys being the keyword arguments of its function:

    NORMS              fn(bert, ...)                    changes a loaded encoder in place: its normalisation,
    FFNS               the same                         its feed-forward,
    ATTENTIONS         the same                         its heads,
    POSITIONS          the same                         how it knows positions,
    ADAPT              the same                         and all else, in the order of the flags
    POOLING            cls(bert)(output, mask)          the encoding (B, C) of a sequence
    PAIR_FEATURES      fn(u, v)                         what a head reads of two encodings (B, C)
    HEADS              fn(in, hidden, out, dropout)     from an encoding to a task's logits
    OUTPUTS            cls(in, out)                     in place of a head's last layer, where a loss needs it
    PARAMETER_GROUPS   fn(model, lr, weight_decay, ...) which parameters share learning rate and weight decay
    TASK_LOSSES        fn(model, batch) -> loss         a batch knows its task: batch["task"]
    PENALTIES          fn(model, batch, logits) -> loss a regularizer; batch["loss"] is the task's loss function
                       or .of_weights(model)            a regularizer of the weights alone, once a step; of a class an
                                                        object is made for the run: see engine.TrainingStep
    TASK_WEIGHTS       cls(tasks)(losses) -> losses     how much each task's loss counts
    GRADIENTS          cls().backward(losses, params)   adds up .grad of {task: loss}, `finish` combines the tasks'
    SCHEDULES          cls(loaders, seed, epochs)(epoch) an epoch's Steps of {task: batch}
    ENGINE             what is applied by flags of its own: --ema, --compile, --dropout, --attention_backend
"""

import inspect
import math
from functools import partial
from types import MappingProxyType

from extensions.adapters import adapters
from extensions.annealed import Annealed
from extensions.as_loaded import as_loaded
from extensions.attention_backends import use_attention_backend
from extensions.attention_heads import gqa, mha, mqa
from extensions.bitfit import bitfit
from extensions.bregman import Bregman
from extensions.cagrad import CAGrad
from extensions.cosine_losses import cosine, cosine_embedding
from extensions.cuda_graphs import GraphedStep
from extensions.diff_pruning import diff_pruning
from extensions.dora import dora
from extensions.dropout_sites import set_dropout
from extensions.dynamic_average import DynamicAverage
from extensions.ema import ExponentialMovingAverage
from extensions.even import Even
from extensions.extra_attention import extra_attention
from extensions.extra_layers import extra_layers
from extensions.fast_dropout import use_fast_dropout
from extensions.fgm import fgm
from extensions.fixed_weights import FixedWeights
from extensions.focal import focal
from extensions.freezing import freeze_layers, gradual_unfreezing
from extensions.fused_adamw import FusedAdamW
from extensions.glu import geglu, gelu, swiglu
from extensions.gradient_sum import GradientSum
from extensions.gradvac import GradVac
from extensions.heads import Relational, mlp
from extensions.ia3 import ia3
from extensions.joint_graphs import JointGraphedStep
from extensions.l2sp import L2SP
from extensions.last_linear import last_linear
from extensions.layer_drop import layer_drop, remove_layers
from extensions.layerwise import layerwise, per_layer
from extensions.lora import lora
from extensions.loss_scale import LossScale
from extensions.mixout import mixout
from extensions.mnrl import mnrl
from extensions.one_versus_rest import PriorOutput, one_versus_rest
from extensions.ordinal import OrdinalOutput, ordinal
from extensions.packed_attention import pack_attention
from extensions.pairs import concat, product
from extensions.pals import pals
from extensions.parameter_groups import flat, no_decay
from extensions.pcgrad import PCGrad
from extensions.pearson_loss import pearson_loss
from extensions.pooling import Attention, Cls, Layers, Max, Mean, Pooler
from extensions.positions import alibi, relative
from extensions.prefix import prefix
from extensions.prompt import prompt
from extensions.proportional import Proportional
from extensions.rdrop import rdrop
from extensions.rmsnorm import rmsnorm
from extensions.rotary import rotary
from extensions.round_robin import RoundRobin
from extensions.simcse import supervised_simcse, unsupervised_simcse
from extensions.smart import smart
from extensions.staged import Staged
from extensions.supervised_losses import bce, ce, mse
from extensions.task_layers import task_layers
from extensions.temperature import Sqrt, Temperature
from extensions.uncertainty import Uncertainty
from files import nearest

NORMS = {"layernorm": as_loaded, "rmsnorm": rmsnorm}
FFNS = {"gelu": gelu, "geglu": geglu, "swiglu": swiglu}
ATTENTIONS = {"mha": mha, "mqa": mqa, "gqa": gqa}
POSITIONS = {"absolute": as_loaded, "relative": relative, "rotary": rotary, "alibi": alibi}
ADAPT = {"lora": lora, "dora": dora, "adapters": adapters, "prefix": prefix, "prompt": prompt, "ia3": ia3,
         "bitfit": bitfit, "diff": diff_pruning, "last-linear": last_linear, "freeze": freeze_layers,
         "gradual-unfreezing": gradual_unfreezing, "pals": pals, "task-layers": task_layers,
         "extra-attention": extra_attention, "extra-layers": extra_layers, "layer-drop": layer_drop,
         "remove-layers": remove_layers, "mixout": mixout}
POOLING = {"cls": Cls, "mean": Mean, "max": Max, "pooler": Pooler, "attention": Attention, "layers": Layers}
HEADS = {"mlp": mlp, "relational": Relational}
PAIR_FEATURES = {"concat": concat, "product": product}
OUTPUTS = {"ordinal": OrdinalOutput, "prior": PriorOutput}
PARAMETER_GROUPS = {"flat": flat, "no-decay": no_decay, "layerwise": layerwise, "per-layer": per_layer}
TASK_LOSSES = {"ce": ce, "ordinal": ordinal, "one-versus-rest": one_versus_rest, "focal": focal, "bce": bce, "mse": mse,
               "cosine": cosine, "cosine-embedding": cosine_embedding, "pearson": pearson_loss, "mnrl": mnrl,
               "simcse": unsupervised_simcse, "simcse-supervised": supervised_simcse}
PENALTIES = {"rdrop": rdrop, "smart": smart, "bregman": Bregman, "fgm": fgm, "l2sp": L2SP}
TASK_WEIGHTS = {"fixed": FixedWeights, "uncertainty": Uncertainty, "loss-scale": LossScale, "dwa": DynamicAverage}
GRADIENTS = {"sum": GradientSum, "pcgrad": PCGrad, "gradvac": GradVac, "cagrad": CAGrad}
SCHEDULES = {"proportional": Proportional, "round-robin": RoundRobin, "sqrt": Sqrt, "temperature": Temperature,
             "annealed": Annealed, "staged": Staged, "even": Even}
ENGINE = {"ema": ExponentialMovingAverage, "fused-adamw": FusedAdamW, "packed-attention": pack_attention,
          "fast-dropout": use_fast_dropout, "graphs": GraphedStep, "joint-graphs": JointGraphedStep,
          "attention-backends": use_attention_backend, "dropout": set_dropout}
# The flags that change the encoder, in the order in which they are carried out.
ENCODER_FLAGS = MappingProxyType({"norm": NORMS, "ffn": FFNS, "attention": ATTENTIONS, "positions": POSITIONS,
                                  "adapt": ADAPT})


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
    twice, and a value of another kind than the default: a number must be finite, and must not be below 0. A technique's
    `bounds`, {key: (least, most)}, tell what else its numbers must be; nothing else looks at them.
    """
    name, _, options = spec.partition(":")
    if name not in table:
        raise ValueError(f"{spec!r}: no {name!r}; choose one of {', '.join(table)}{nearest(name, table)}")
    parameters = inspect.signature(table[name]).parameters.values()
    # These have flags of their own.
    defaults = {p.name: p.default for p in parameters
                if p.default is not p.empty and p.name not in ("weight_decay", "seed", "epochs")}
    valid = ", ".join(f"{key} (default {default})" for key, default in defaults.items()) or "no options"
    values = {}
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        if key not in defaults or key in values:
            again = " once" if key in values else ""
            raise ValueError(f"{spec!r}: {name} takes {valid}{again}{nearest(key, set(defaults) - set(values))}")
        value, kind = parse_value(text), type(defaults[key])
        if kind is str and isinstance(value, float):
            value = text  # inf is a word there, as of a norm, and a list of rates may have one
        if text == "" or not (type(value) is kind or (kind, type(value)) == (float, int)):
            raise ValueError(f"{spec!r}: {name} takes {valid}, and {text!r} is no value of that kind")
        if kind in (int, float) and not 0 <= value < math.inf:
            raise ValueError(f"{spec!r}: {key} must be a finite number of at least 0")
        least, most = getattr(table[name], "bounds", {}).get(key, (value, value))
        if not least <= value <= most:
            raise ValueError(f"{spec!r}: {key} must be " + (
                f"from {least} to {most}" if most < math.inf else f"at least {least}"))
        values[key] = value
    return partial(table[name], **values)


def require_effect(spec, table):
    """Raise ValueError for a spec that `from_spec` refuses, and for one of which a part does nothing.

    A technique's `only_with`, {key: "OTHER=VALUE" or "OTHER"}, tells which keys mean nothing unless another has that
    value, or any but none and 0. This is for what a user writes: the specs of a checkpoint are taken as they are.
    """
    technique = from_spec(spec, table)
    options = {name: p.default for name, p in inspect.signature(technique).parameters.items()}  # those bound included
    defaults = inspect.signature(technique.func).parameters
    for key, other in getattr(technique.func, "only_with", {}).items():
        needed, _, text = other.partition("=")
        idle = options[needed] != parse_value(text) if text else options[needed] in ("none", 0)
        if idle and options[key] != defaults[key].default:
            raise ValueError(f"{spec!r}: {key} does nothing without {other}")


def made(spec, table, *args):
    """Return the technique that `spec` names: of a class an object, made with `args`; of a function, itself."""
    technique = from_spec(spec, table)
    return technique(*args) if inspect.isclass(technique.func) else technique
