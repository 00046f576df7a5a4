"""."""

from extensions.penalties.bregman import Bregman
from extensions.penalties.fgm import fgm
from extensions.penalties.l2sp import L2SP
from extensions.penalties.rdrop import rdrop
from extensions.penalties.smart import smart

PENALTIES = {"rdrop": rdrop, "smart": smart, "bregman": Bregman, "fgm": fgm, "l2sp": L2SP}
