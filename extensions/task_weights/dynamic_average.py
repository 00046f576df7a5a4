"""Dynamic weight averaging: a task whose loss falls slowly gets more weight (Liu, Johns and Davison 2019)."""

import math

import torch

from extensions.task_weights._task_weights import TaskWeights
from extensions.technique import Range, Technique


class DynamicAverage(TaskWeights):
    """L = sum over tasks of w_t L_t with K tasks and, from the mean losses of a task's last two epochs,

        w_t = K exp(r_t / T) / sum over i of exp(r_i / T),    r_t = L_t(last) / L_t(last but one)

    https://arxiv.org/abs/1803.10704, equation 7, with its T = 2: the greater T, the more alike the weights. r_t = 1
    until a task has been trained in two epochs; an epoch without the task (see `staged`) does not count for it.
    """

    def __init__(self, tasks, T=2.0):
        super().__init__(tasks)
        self.T = T
        self.register_buffer("history", torch.full((len(self.tasks), 2), math.nan))  # (K, 2): last but one, last
        self.register_buffer("weights", torch.ones(len(self.tasks)))

    def forward(self, losses):
        """Return {task: weighted loss}."""
        return {task: self.weights[self.tasks.index(task)] * loss for task, loss in losses.items()}

    @torch.no_grad()
    def end_epoch(self, mean_losses):
        """Set the next epoch's weights, in place."""
        for task, loss in mean_losses.items():
            k = self.tasks.index(task)
            self.history[k] = torch.tensor([self.history[k, 1], loss])
        ratios = (self.history[:, 1] / self.history[:, 0].clamp(min=1e-8)).nan_to_num(nan=1.0)  # (K,)
        self.weights.copy_(len(self.tasks) * (ratios / self.T).softmax(dim=0))


DYNAMIC_AVERAGE = Technique(
    "dwa", DynamicAverage, paper="Liu, Johns and Davison 2019, arxiv.org/abs/1803.10704",
    does="More weight for a task whose loss falls slowly.",
    use="With many epochs: the first two are alike. No effect on a tenth of the rows (.000).",
    aka=("dynamic-weight-average", "dynamic-average", "dynamic"), likely={"temperature": "T"},
    valid={"T": Range(above=0)}, needed_epochs=3)
