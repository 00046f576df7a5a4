"""--penalty: a regularizer, `fn(forward)` of a ForwardPass, or a class of such objects (see Penalty)."""

from extensions.penalties._penalty import WeightPenalty, as_penalty
from extensions.penalties.bregman import Bregman
from extensions.penalties.fgm import fgm
from extensions.penalties.l2sp import L2SP
from extensions.penalties.rdrop import rdrop
from extensions.penalties.smart import smart

PENALTIES = {"rdrop": rdrop, "smart": smart, "bregman": Bregman, "fgm": fgm, "l2sp": L2SP}

__all__ = ["PENALTIES", "WeightPenalty", "as_penalty"]
