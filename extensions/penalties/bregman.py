"""Momentum Bregman proximal point optimization (Jiang et al. 2020, https://arxiv.org/abs/1911.03437, section 3.2)."""

import copy

import torch

from extensions.penalties._divergence import smoothness
from extensions.penalties._penalty import Penalty
from extensions.technique import Range, Technique


class Bregman(Penalty):
    """weight · D_Breg(θ, θ'), D_Breg the mean over rows of l_s(f(x; θ), f(x; θ')): no step should change much.

    The teacher θ' <- beta θ' + (1 - beta) θ after every step begins as the weights at the start. l_s is SMART's, and
    `weight` the paper's mu = 1. The paper raises beta from 0.99 to 0.999 after a tenth of the steps; here it stays. It
    says nothing of the teacher's dropout: here it has none, as its logits are a target. One pass without gradients a
    step, and the memory of a second model.
    """

    def __init__(self, weight=1.0, beta=0.99):
        self.weight, self.beta = weight, beta

    def start(self, model):
        """Make the teacher, a copy of the model that is no part of it."""
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.averaged = {name: self.teacher.get_parameter(name) for name in names}

    def __call__(self, forward):
        """Return the penalty of a forward pass, 0-dim."""
        # None of its weights wants a gradient. Not under no_grad, where `encode_apart` waits for the device.
        target = forward.again(model=self.teacher).logits
        return self.weight * smoothness(forward.task, forward.logits, target)

    @torch.no_grad()
    def after_step(self, model):
        """Move the teacher towards the model."""
        weights = [model.get_parameter(name) for name in self.averaged]
        torch._foreach_lerp_(list(self.averaged.values()), weights, 1 - self.beta)

    def state_dict(self):
        """Return the teacher's weights, {name: tensor}."""
        return dict(self.averaged)

    @torch.no_grad()
    def load_state_dict(self, state):
        """Take over the teacher's weights; the tensors stay where they are."""
        for name, p in self.averaged.items():
            p.copy_(state[name])


BREGMAN = Technique(
    "bregman", Bregman, paper="Jiang et al. 2020, section 3.2, arxiv.org/abs/1911.03437",
    does="No step should change predictions much: stay near a slowly moving teacher.",
    use="With smart, as in its paper. No clear effect on a tenth of the rows; 1.5 times the time.",
    aka=("vbppo", "proximal", "mean-teacher"), likely={"mu": "weight", "momentum": "beta", "decay": "beta"},
    valid={"beta": Range(0, 1)})
