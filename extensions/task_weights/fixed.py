"""Fixed weights of the tasks' losses (Peng et al. 2024: a linear combination of the losses)."""

from extensions.task_weights._task_weights import TaskWeights
from extensions.technique import Technique


class FixedWeights(TaskWeights):
    """L = sum over tasks of w_t L_t. A weight of 0 trains a task's head no more, with its batches still computed."""

    def __init__(self, tasks, **weights):
        super().__init__(tasks)
        self.weights = {task: weights.get(task, 1.0) for task in self.tasks}
        self.alike = len(set(self.weights.values())) == 1

    def forward(self, losses):
        """Return {task: weighted loss}."""
        return {task: self.weights[task] * loss for task, loss in losses.items()}


def require_weights(tasks, epochs, **weights):
    """Raise ValueError for a weight of a task that is not trained, and where all are 0."""
    absent = [task for task, weight in weights.items() if weight != 1 and task not in tasks]
    if absent:
        raise ValueError(f"{absent[0]} is not among --tasks {' '.join(tasks)}; leave its weight out")
    if not any(weights[task] for task in tasks):
        raise ValueError("with a weight of 0 for all tasks nothing is trained; give one of "
                         f"{', '.join(tasks)} a weight above 0")


FIXED = Technique(
    "fixed", FixedWeights, paper="Peng, Yuan and Wang 2024",
    does="A weight for each task's loss, 1 unless given.",
    use="The default. For a schedule that takes tasks together; fixed:sst=2 had no clear effect.",
    aka=("manual", "linear", "constant", "equal"), check_run=require_weights, task_option=1.0)
