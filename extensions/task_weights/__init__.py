"""--task_weights: how much each task's loss counts, a TaskWeights: `cls(tasks, **options)(losses)` -> {task: loss}."""

from extensions.task_weights._task_weights import TaskWeights
from extensions.task_weights.dynamic_average import DYNAMIC_AVERAGE
from extensions.task_weights.fixed import FIXED
from extensions.task_weights.loss_scale import LOSS_SCALE
from extensions.task_weights.uncertainty import UNCERTAINTY
from extensions.technique import by_name

TASK_WEIGHTS = by_name(FIXED, UNCERTAINTY, LOSS_SCALE, DYNAMIC_AVERAGE)

__all__ = ["TASK_WEIGHTS", "TaskWeights"]
