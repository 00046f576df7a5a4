"""L2-SP, weight decay towards the starting point (Li, Grandvalet and Davoine 2018, https://arxiv.org/abs/1802.01483)."""

import torch
import torch.nn.functional as F

from extensions.penalties._penalty import WeightPenalty
from extensions.technique import Technique
from extensions.tuning.parameter_groups import is_head


class L2SP(WeightPenalty):
    """alpha / 2 ‖w - w⁰‖² + beta / 2 ‖v‖²: w the encoder's weights, w⁰ what they were at the start, v the new layers'.

    The paper's equation 4, which takes the place of weight decay: give --weight_decay 0 with it, or AdamW pulls both
    towards 0 as well. w⁰ is what the run begins with, layers that --adapt has added to the encoder included. Of
    the new layers the matrices count; biases and the scale of a cosine may lie far from 0. It is of the weights alone:
    the step adds its gradient once, to whatever the tasks' losses have become by then, and to no weight that these have
    not reached: AdamW, to which a gradient's size is nothing, would move the heads of all other tasks in every step.
    """

    def __init__(self, alpha=0.01, beta=0.01):
        self.alpha, self.beta = alpha, beta

    def start(self, model):
        """Keep the encoder's weights as w⁰."""
        self.pretrained = {name: p.detach().clone() for name, p in model.bert.named_parameters() if p.requires_grad}

    def of_weights(self, model):
        """Return the penalty, 0-dim, of the weights that have a gradient, those that the step's tasks train."""
        trained = {name: p for name, p in model.named_parameters() if p.grad is not None}
        old = [F.mse_loss(trained[f"bert.{name}"], w, reduction="sum") for name, w in self.pretrained.items()
               if f"bert.{name}" in trained]
        new = [v.square().sum() * (v.ndim > 1) for name, v in trained.items() if is_head(name)]
        return (self.alpha * sum(old) + self.beta * sum(new)) / 2

    def state_dict(self):
        """Return w⁰, {name: tensor}."""
        return dict(self.pretrained)

    @torch.no_grad()
    def load_state_dict(self, state):
        """Take over w⁰; the tensors stay where they are."""
        for name, w in self.pretrained.items():
            w.copy_(state[name])


L2_SP = Technique(
    "l2sp", L2SP, paper="Li, Grandvalet and Davoine 2018, arxiv.org/abs/1802.01483",
    does="Weight decay towards the pretrained weights instead of 0.",
    use="With --weight_decay 0, when fine-tuning forgets. No clear effect on a tenth of the rows.",
    aka=("l2-sp", "l2", "weight-decay"), likely={"weight": "alpha", "lambda": "alpha"})
