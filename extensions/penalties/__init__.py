"""--penalty: a regularizer, `fn(forward, **options)` -> 0-dim, or a class of such objects: see Penalty."""

from extensions.penalties._penalty import WeightPenalty, as_penalty
from extensions.penalties.bregman import BREGMAN
from extensions.penalties.fgm import FGM
from extensions.penalties.l2sp import L2_SP
from extensions.penalties.rdrop import RDROP
from extensions.penalties.smart import SMART
from extensions.technique import by_name

PENALTIES = by_name(RDROP, SMART, BREGMAN, FGM, L2_SP)

__all__ = ["PENALTIES", "WeightPenalty", "as_penalty"]
