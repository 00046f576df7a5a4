"""The table of contents of the techniques: one technique a file, one dict a seam.

Scripts look a name up here and nowhere else:

    PARAMETER_GROUPS   fn(model, lr, ...) -> groups     which parameters share learning rate and decay
    TASK_LOSSES        fn(model, batch) -> loss         a batch knows its task: batch["task"]
    GRADIENTS          fn(losses, params)               writes .grad from {task: loss}
    SCHEDULES          cls(loaders, seed)(epoch)        iterable of {task: batch}, with a length
"""

from extensions.gradient_sum import gradient_sum
from extensions.parameter_groups import flat, no_decay
from extensions.proportional import Proportional
from extensions.supervised_losses import bce, ce, mse

PARAMETER_GROUPS = {"flat": flat, "no-decay": no_decay}
TASK_LOSSES = {"ce": ce, "bce": bce, "mse": mse}
GRADIENTS = {"sum": gradient_sum}
SCHEDULES = {"proportional": Proportional}
