"""--pooling: `cls(bert)(output, mask)`, the encoding (B, C) of a sequence; --heads: `fn(in, hidden, out, dropout,
**options)`, a module from encodings to logits; PAIR_FEATURES, --pair_score: `fn(u, v)`, what it reads of a pair's two.
"""

from extensions.heads.heads import MLP, RELATIONAL
from extensions.heads.pairs import concat, product
from extensions.heads.pooling import ATTENTION, CLS, LAYERS, MAX, MEAN, POOLER
from extensions.technique import by_name

POOLING = by_name(CLS, MEAN, MAX, POOLER, ATTENTION, LAYERS)
HEADS = by_name(MLP, RELATIONAL)
PAIR_FEATURES = {"concat": concat, "product": product}
