"""--penalty: a regularizer, `fn(forward, **options)` -> 0-dim, or a class: `cls(**options)` makes a run's object.

Such an object is called as the function is, or has `of_weights(model)`, a loss of the weights alone, once a step; and
it may have `start(model)`, `after_step(model)`, `state_dict()` and `load_state_dict(state)`.
"""

from extensions.penalties.bregman import BREGMAN
from extensions.penalties.fgm import FGM
from extensions.penalties.l2sp import L2_SP
from extensions.penalties.rdrop import RDROP
from extensions.penalties.smart import SMART
from extensions.technique import by_name

PENALTIES = by_name(RDROP, SMART, BREGMAN, FGM, L2_SP)
