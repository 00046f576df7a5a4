"""--norm, --ffn, --attention, --positions; --adapt, what an encoder computes: `fn(bert, **options)`, in place."""

from extensions.architecture.as_loaded import ABSOLUTE, LAYERNORM
from extensions.architecture.attention_heads import GQA, MHA, MQA
from extensions.architecture.dropout_sites import DROPOUT_SITES
from extensions.architecture.extra_attention import EXTRA_ATTENTION
from extensions.architecture.extra_layers import EXTRA_LAYERS
from extensions.architecture.glu import GEGLU, GELU, SWIGLU
from extensions.architecture.layer_drop import LAYER_DROP, REMOVE_LAYERS
from extensions.architecture.pals import PALS
from extensions.architecture.positions import ALIBI, RELATIVE
from extensions.architecture.rmsnorm import RMSNORM
from extensions.architecture.rotary import ROTARY
from extensions.architecture.task_layers import TASK_LAYERS
from extensions.technique import by_name

NORMS = by_name(LAYERNORM, RMSNORM)
FFNS = by_name(GELU, GEGLU, SWIGLU)
ATTENTIONS = by_name(MHA, MQA, GQA)
POSITIONS = by_name(ABSOLUTE, RELATIVE, ROTARY, ALIBI)
ADDITIONS = by_name(PALS, TASK_LAYERS, EXTRA_ATTENTION, EXTRA_LAYERS, LAYER_DROP, REMOVE_LAYERS)

__all__ = ["ADDITIONS", "ATTENTIONS", "DROPOUT_SITES", "FFNS", "NORMS", "POSITIONS"]
