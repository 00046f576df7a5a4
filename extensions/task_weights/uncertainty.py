"""Uncertainty weighting: each task's noise is learned, and weighs its loss (Kendall, Gal and Cipolla 2018)."""

import torch
from torch import nn

from extensions.task_weights._task_weights import TaskWeights
from extensions.technique import Joined, Technique, words_of
from tasks import TASKS


class Uncertainty(TaskWeights):
    """L = sum over tasks of exp(-s_t) L_t a_t + s_t / 2, with s_t = log sigma_t^2 learned, 0 at first.

    https://arxiv.org/abs/1705.07115, section 3.2. Regression: the negative log likelihood of a normal distribution
    around the output is (y - f)^2 / (2 sigma^2) + log sigma + const, so with the mean squared error as L_t,
    exp(-s) L_t / 2 + s / 2: a_t = 1/2. Classification: with softmax(f / sigma^2) it is
    L_t / sigma^2 + log(sum_c exp(f_c / sigma^2) / (sum_c exp f_c)^(1 / sigma^2)), and the paper's approximation (its
    equation 10, exact at sigma = 1) takes the last term for log sigma: exp(-s) L_t + s / 2: a_t = 1.
    Where the derivative for s is 0, sigma_t^2 is L_t in regression, 2 L_t in classification.

    `regression` names the tasks of the first kind, joined by +; auto are those with real labels. At the beginning their
    losses count half.
    The s_t have a learning rate of their own: at the encoder's, 1e-5, AdamW would move them by 0.1 in 10,000 steps.
    """

    def __init__(self, tasks, regression="auto", lr=1e-3):
        super().__init__(tasks)
        self.lr = lr
        normal = ([task for task in tasks if TASKS[task].kind == "real"] if regression == "auto"
                  else words_of(regression))
        self.factors = {task: 0.5 if task in normal else 1.0 for task in self.tasks}
        self.s = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in self.tasks})

    def forward(self, losses):
        """Return {task: weighted loss}, which may be negative."""
        return {task: torch.exp(-self.s[task]) * loss * self.factors[task] + self.s[task] / 2
                for task, loss in losses.items()}


UNCERTAINTY = Technique(
    "uncertainty", Uncertainty, paper="Kendall, Gal and Cipolla 2018, arxiv.org/abs/1705.07115",
    does="Learns each task's noise, which weighs its loss.",
    use="The one of these to try first: +.007 over round-robin on a tenth of the rows (one seed).",
    aka=("kendall", "homoscedastic"), valid={"regression": Joined(TASKS, ("auto", "none"))})
