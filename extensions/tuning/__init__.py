"""."""

from extensions.tuning.adapters import adapters
from extensions.tuning.bitfit import bitfit
from extensions.tuning.diff_pruning import diff_pruning
from extensions.tuning.dora import dora
from extensions.tuning.freezing import freeze_layers, gradual_unfreezing
from extensions.tuning.ia3 import ia3
from extensions.tuning.last_linear import last_linear
from extensions.tuning.layerwise import layerwise, per_layer
from extensions.tuning.lora import lora
from extensions.tuning.mixout import mixout
from extensions.tuning.parameter_groups import flat, no_decay
from extensions.tuning.prefix import prefix
from extensions.tuning.prompt import prompt

PARAMETER_GROUPS = {"flat": flat, "no-decay": no_decay, "layerwise": layerwise, "per-layer": per_layer}
TUNING = {"lora": lora, "dora": dora, "adapters": adapters, "prefix": prefix, "prompt": prompt, "ia3": ia3,
          "bitfit": bitfit, "diff": diff_pruning, "last-linear": last_linear, "freeze": freeze_layers,
          "gradual-unfreezing": gradual_unfreezing, "mixout": mixout}
