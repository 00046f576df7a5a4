"""Exponential moving average of the weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, section 2)."""

from contextlib import contextmanager

import torch


class ExponentialMovingAverage:
    """The average θ' = d θ' + (1 - d) θ of the parameters θ after each step.

    The decay d is `decay`, but at most (1 + t) / (10 + t) at step t, so that the first steps are soon forgotten
    (as in the moving averages of TensorFlow). Only parameters that training updates are averaged.
    """

    def __init__(self, model, decay):
        self.decay = decay
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def update(self, step):
        """Take in the weights after step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.params.values()), 1 - decay)

    @torch.no_grad()
    def swap(self):
        """Exchange the values of the weights and of their average; the tensors stay where they are."""
        for name, p in self.params.items():
            weights = p.clone()
            p.copy_(self.average[name])
            self.average[name].copy_(weights)

    @contextmanager
    def applied(self):
        """Return the context in which the model has the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def load(self, average):
        """Take over a saved average, {name: tensor}."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
