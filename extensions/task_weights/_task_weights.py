"""What all weightings of the tasks' losses share: what the engine tells them, to most of which most do nothing."""

from torch import nn


class TaskWeights(nn.Module):
    """`weights(losses)` returns {task: loss} weighted. Its parameters are trained with the model, without weight decay.

    `losses` holds the step's tasks alone, a task's loss being that with its penalties (R-Drop's, SMART's); the loss of
    a part of a step is the mean over its rows, and the engine multiplies by the part's share afterwards. What changes
    while training is in parameters and buffers: it moves to the device, is saved and resumed, and a CUDA graph sees it
    change.
    """

    alike = False  # whether all tasks always count alike
    lr = None  # the parameters' learning rate; None for the model's

    def __init__(self, tasks):
        super().__init__()
        self.tasks = list(tasks)

    def forward(self, losses):
        """Return {task: weighted loss}; here all tasks count alike."""
        return losses

    def after_step(self, losses):
        """Take note of the step's losses, {task: 0-dim}: over all parts and processes, detached, not weighted."""

    def end_epoch(self, mean_losses):
        """Take note of the epoch's mean losses, {task: float}, not weighted."""
