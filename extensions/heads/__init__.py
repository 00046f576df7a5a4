"""."""

from extensions.heads.heads import Relational, mlp
from extensions.heads.pairs import concat, product
from extensions.heads.pooling import Attention, Cls, Layers, Max, Mean, Pooler

POOLING = {"cls": Cls, "mean": Mean, "max": Max, "pooler": Pooler, "attention": Attention, "layers": Layers}
HEADS = {"mlp": mlp, "relational": Relational}
PAIR_FEATURES = {"concat": concat, "product": product}
