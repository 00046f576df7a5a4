"""."""

from extensions.architecture.as_loaded import as_loaded
from extensions.architecture.attention_heads import gqa, mha, mqa
from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.extra_layers import extra_layers
from extensions.architecture.glu import geglu, gelu, swiglu
from extensions.architecture.layer_drop import layer_drop, remove_layers
from extensions.architecture.pals import pals
from extensions.architecture.positions import alibi, relative
from extensions.architecture.rmsnorm import rmsnorm
from extensions.architecture.rotary import rotary
from extensions.architecture.task_layers import task_layers

NORMS = {"layernorm": as_loaded, "rmsnorm": rmsnorm}
FFNS = {"gelu": gelu, "geglu": geglu, "swiglu": swiglu}
ATTENTIONS = {"mha": mha, "mqa": mqa, "gqa": gqa}
POSITIONS = {"absolute": as_loaded, "relative": relative, "rotary": rotary, "alibi": alibi}
ADDITIONS = {"pals": pals, "task-layers": task_layers, "extra-attention": extra_attention, "extra-layers": extra_layers,
             "layer-drop": layer_drop, "remove-layers": remove_layers}
