"""--loss: a task's loss, `fn(forward, **options)` -> 0-dim; OUTPUTS, `cls(in, out)`: a head's last layer for some."""

from extensions.losses.cosine import COSINE, COSINE_EMBEDDING
from extensions.losses.focal import FOCAL
from extensions.losses.mnrl import MNRL
from extensions.losses.one_versus_rest import ONE_VERSUS_REST, PriorOutput
from extensions.losses.ordinal import ORDINAL, OrdinalOutput
from extensions.losses.pearson import PEARSON
from extensions.losses.simcse import SIMCSE, SUPERVISED_SIMCSE
from extensions.losses.supervised import BCE, CE, MSE
from extensions.technique import by_name

TASK_LOSSES = by_name(CE, ORDINAL, ONE_VERSUS_REST, FOCAL, BCE, MSE, COSINE, COSINE_EMBEDDING, PEARSON, MNRL, SIMCSE,
                      SUPERVISED_SIMCSE)
OUTPUTS = {"ordinal": OrdinalOutput, "prior": PriorOutput}
