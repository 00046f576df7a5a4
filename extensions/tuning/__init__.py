"""--adapt, which weights of a loaded encoder are trained: `fn(bert, **options)` changes it in place.

--param_groups: `fn(model, lr, weight_decay, **options)`, which parameters share learning rate and weight decay.
"""

from extensions.technique import by_name
from extensions.tuning.adapters import ADAPTERS
from extensions.tuning.bitfit import BITFIT
from extensions.tuning.diff_pruning import DIFF
from extensions.tuning.dora import DORA
from extensions.tuning.freezing import FREEZE, GRADUAL_UNFREEZING
from extensions.tuning.ia3 import IA3
from extensions.tuning.last_linear import LAST_LINEAR
from extensions.tuning.layerwise import LAYERWISE, PER_LAYER
from extensions.tuning.lora import LORA
from extensions.tuning.mixout import MIXOUT
from extensions.tuning.parameter_groups import FLAT, NO_DECAY
from extensions.tuning.prefix import PREFIX
from extensions.tuning.prompt import PROMPT

TUNING = by_name(LORA, DORA, ADAPTERS, PREFIX, PROMPT, IA3, BITFIT, DIFF, LAST_LINEAR, FREEZE, GRADUAL_UNFREEZING,
                 MIXOUT)
PARAMETER_GROUPS = by_name(FLAT, NO_DECAY, LAYERWISE, PER_LAYER)
