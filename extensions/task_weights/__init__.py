"""--task_weights: `cls(tasks, **options)`, called with {task: loss}, returns them weighted."""

from extensions.task_weights.dynamic_average import DYNAMIC_AVERAGE
from extensions.task_weights.fixed import FIXED
from extensions.task_weights.loss_scale import LOSS_SCALE
from extensions.task_weights.uncertainty import UNCERTAINTY
from extensions.technique import by_name

TASK_WEIGHTS = by_name(FIXED, UNCERTAINTY, LOSS_SCALE, DYNAMIC_AVERAGE)
