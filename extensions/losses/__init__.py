"""--loss: a task's loss, `fn(forward)` of a ForwardPass; OUTPUTS: what a loss puts in place of a head's last layer."""

from extensions.losses.cosine import cosine, cosine_embedding
from extensions.losses.focal import focal
from extensions.losses.mnrl import mnrl
from extensions.losses.one_versus_rest import PriorOutput, one_versus_rest
from extensions.losses.ordinal import OrdinalOutput, ordinal
from extensions.losses.pearson import pearson_loss
from extensions.losses.simcse import supervised_simcse, unsupervised_simcse
from extensions.losses.supervised import bce, ce, mse

TASK_LOSSES = {"ce": ce, "ordinal": ordinal, "one-versus-rest": one_versus_rest, "focal": focal, "bce": bce, "mse": mse,
               "cosine": cosine, "cosine-embedding": cosine_embedding, "pearson": pearson_loss, "mnrl": mnrl,
               "simcse": unsupervised_simcse, "simcse-supervised": supervised_simcse}
OUTPUTS = {"ordinal": OrdinalOutput, "prior": PriorOutput}
