"""--task_weights: how much each task's loss counts, a TaskWeights: `cls(tasks)(losses)` -> {task: loss}."""

from extensions.task_weights._task_weights import TaskWeights
from extensions.task_weights.dynamic_average import DynamicAverage
from extensions.task_weights.fixed import FixedWeights
from extensions.task_weights.loss_scale import LossScale
from extensions.task_weights.uncertainty import Uncertainty

TASK_WEIGHTS = {"fixed": FixedWeights, "uncertainty": Uncertainty, "loss-scale": LossScale, "dwa": DynamicAverage}

__all__ = ["TASK_WEIGHTS", "TaskWeights"]
