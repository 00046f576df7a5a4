"""What the training step calls of a penalty."""

from extensions.hooks import Hooks


class Penalty(Hooks):
    """A regularizer of a forward pass; a subclass overrides what it needs."""

    def start(self, model):
        """Take note of the model before the first step."""

    def __call__(self, forward):
        """Return the penalty of a forward pass, 0-dim."""
        raise NotImplementedError

    def after_step(self, model):
        """Take note of the updated weights, after every step; without gradients."""

    def state_dict(self):
        """Return what a checkpoint must hold, {name: tensor}; None for a penalty without state."""
        return None

    def load_state_dict(self, state):
        """Take over what `state_dict` returned."""


class WeightPenalty(Penalty, Hooks):
    """A regularizer of the weights alone: it counts once a step, whatever the step's batches are."""

    def of_weights(self, model):
        """Return the penalty, 0-dim, when the gradients of the step's losses are in `.grad`."""
        raise NotImplementedError


class FunctionPenalty(Penalty):
    """A penalty that is a function of the forward pass and nothing else."""

    def __init__(self, function):
        self.function = function

    def __call__(self, forward):
        """Return the function's value, 0-dim."""
        return self.function(forward)


def as_penalty(penalty):
    """Return a `Penalty`, or a function fn(forward), as a `Penalty`."""
    return penalty if isinstance(penalty, Penalty) else FunctionPenalty(penalty)
