"""Fixed weights of the tasks' losses (Peng et al. 2024: a linear combination of the losses)."""

from inspect import Parameter, Signature

from extensions.task_weights._task_weights import TaskWeights
from files.errors import UserError
from tasks import COURSE_TASKS, TASKS


class OptionPerTask:
    """The signature that a class shows: its `tasks`, and an option of default 1.0 for each task of the table."""

    def __get__(self, instance, owner=None):
        return Signature([Parameter("tasks", Parameter.POSITIONAL_OR_KEYWORD)] + [
            Parameter(task, Parameter.POSITIONAL_OR_KEYWORD, default=1.0) for task in TASKS])


class FixedWeights(TaskWeights):
    """L = sum over tasks of w_t L_t. A weight of 0 trains a task's head no more, with its batches still computed."""

    __signature__ = OptionPerTask()

    def __init__(self, tasks, **weights):
        super().__init__(tasks)
        self.weights = {task: weights.get(task, 1.0) for task in dict.fromkeys([*COURSE_TASKS, *self.tasks, *weights])}
        self.alike = len(set(self.weights.values())) == 1
        absent = [task for task, weight in self.weights.items() if weight != 1 and task not in self.tasks]
        if absent:
            raise UserError(f"--task_weights fixed: {absent[0]} is not among --tasks {' '.join(self.tasks)}; leave its "
                            "weight out")
        negative = [f"{task}={weight}" for task, weight in self.weights.items() if not weight >= 0]
        if negative:
            raise UserError(f"--task_weights fixed:{','.join(negative)}: a weight is 0 or more")
        if self.tasks and not any(self.weights[task] for task in self.tasks):
            raise UserError("--task_weights fixed: with a weight of 0 for all tasks nothing is trained; give one of "
                            f"{', '.join(self.tasks)} a weight above 0")

    def forward(self, losses):
        """Return {task: weighted loss}."""
        return {task: self.weights[task] * loss for task, loss in losses.items()}
