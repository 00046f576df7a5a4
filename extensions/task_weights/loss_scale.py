"""Loss-scale normalisation: every task's loss is divided by its own running mean."""

import torch

from extensions.task_weights._task_weights import TaskWeights
from extensions.technique import Range, Technique


class LossScale(TaskWeights):
    """L = sum over tasks of L_t / m_t, m_t the running mean of L_t over the steps before this one, a constant:

        v <- beta v + (1 - beta) |L_t| after every step with the task (v = 0 at first),    m_t = v / (1 - beta^n)

    after n such steps (the division as in Adam: without it m would begin near 0). Until a task has had a loss that is
    not 0, as that of a batch without positives is, m_t = 1. So every task contributes about 1 to the loss, whatever
    units its loss has. The loss of the step itself is not in m_t: it is known only when all parts and processes are
    through.
    """

    def __init__(self, tasks, beta=0.98):
        super().__init__(tasks)
        self.beta = beta
        for name in ("sums", "weights"):  # v and 1 - beta^n of each task
            self.register_buffer(name, torch.zeros(len(self.tasks)))

    def forward(self, losses):
        """Return {task: loss over its running mean}."""
        means = torch.where(self.sums > 0, self.sums / self.weights, 1.0).clamp(min=1e-8)  # (K,)
        return {task: loss / means[self.tasks.index(task)] for task, loss in losses.items()}

    @torch.no_grad()
    def after_step(self, losses):
        """Move the means on, in place."""
        for task, loss in losses.items():
            k = self.tasks.index(task)
            self.sums[k].lerp_(loss.to(self.sums).abs(), 1 - self.beta)
            self.weights[k].lerp_(torch.ones_like(self.weights[k]), 1 - self.beta)


LOSS_SCALE = Technique(
    "loss-scale", LossScale, paper="none",
    does="Divides every task's loss by its own running mean.",
    use="When losses have very unequal sizes. No clear effect on a tenth of the rows.",
    aka=("normalize", "normalise", "running-mean"), likely={"momentum": "beta", "decay": "beta"},
    valid={"beta": Range(below=1)})
