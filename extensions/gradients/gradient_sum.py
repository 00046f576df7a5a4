"""The plain gradient of multitask learning: that of the summed losses (Bi et al. 2022)."""

from extensions.technique import Technique


class GradientSum:
    """Add the gradient of sum(losses.values()) to the `.grad` of the parameters; the engine sums over processes."""

    per_task, cosines = False, {}

    def backward(self, losses, params):
        """Add the gradient of {task: loss} to `.grad`."""
        sum(losses.values()).backward()

    def messages(self, params):
        """Return the tensors to be summed over processes, a list for each message."""
        return [[p.grad for p in params if p.grad is not None]]

    def combine(self, params):
        """Do nothing: the gradient is where it belongs."""

    def state_dict(self):
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state):
        """Do nothing."""


GRADIENT_SUM = Technique(
    "sum", GradientSum, paper="Bi et al. 2022",
    does="The gradient of the summed losses.", use="The default, and the one to compare the others with.",
    aka=("plain", "none", "mean", "average"))
