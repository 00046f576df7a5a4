"""GradVac, gradient vaccine: gradients are turned towards the cosine that they usually have (Wang et al. 2021)."""

import torch

from extensions.gradients._task_gradients import TaskGradients
from extensions.technique import Range, Technique


class GradVac(TaskGradients):
    """For each task i, and each other task j in random order: with phi the cosine of g_i' and g_j, where phi < t_ij,

        g_i' <- g_i' + ||g_i'|| (t_ij sqrt(1 - phi^2) - phi sqrt(1 - t_ij^2)) / (||g_j|| sqrt(1 - t_ij^2)) g_j

    which gives them the cosine t_ij; then t_ij <- (1 - beta) t_ij + beta phi, and the update takes the sum of the g_i'
    (g_i' = g_i at first). https://arxiv.org/abs/2010.05874, equation 3 and algorithm 1. t_ij begins at 0, where this is
    PCGrad. The paper sets its targets for parts of a network as well; here there is one for all shared parameters.
    """

    def __init__(self, beta=0.01):
        super().__init__()
        self.beta = beta
        self.targets = {}  # {(task, other): t, 0-dim}

    def weights(self, gram, order):
        """Return the weights of the tasks' gradients in their combination, (K,); move the targets on."""
        pairs = [(task, other) for task in self.tasks for other in self.tasks]
        for pair in pairs:
            # A checkpoint's are on the CPU.
            self.targets[pair] = self.targets.get(pair, torch.zeros_like(gram[0, 0])).to(gram)
        targets = torch.stack([self.targets[pair] for pair in pairs]).view_as(gram)  # (K, K)
        rows, small = torch.arange(len(gram), device=gram.device), torch.finfo(gram.dtype).eps
        coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # (K, K): g_i' = c_i G
        for j in order.T:  # (K,): the task that each task meets now
            inner = (coefficients * gram[j]).sum(dim=1)  # (K,): g_i' . g_j
            squared = ((coefficients @ gram) * coefficients).sum(dim=1).clamp(min=0)  # (K,): ||g_i'||^2
            norm, other = squared.sqrt(), gram[j, j].sqrt()
            phi = (inner / (norm * other).clamp(min=torch.finfo(gram.dtype).tiny)).clamp(-1, 1)
            target = targets[rows, j]
            sine, target_sine = (1 - phi**2).sqrt(), (1 - target**2).clamp(min=small).sqrt()
            step = norm * (target * sine - phi * target_sine) / (other * target_sine)
            # A gradient of 0 (a batch without positives) has no angle: nothing turns towards it, no target moves.
            angle = (norm > 0) & (other > 0)
            coefficients[rows, j] += torch.where(angle & (phi < target) & (j != rows), step, torch.zeros_like(step))
            targets[rows, j] = torch.where(angle, torch.lerp(target, phi, self.beta), target)
        for pair, target in zip(pairs, targets.flatten(), strict=True):
            self.targets[pair].copy_(target)
        return coefficients.sum(dim=0)

    def state_dict(self):
        """Return the targets."""
        return {"targets": {pair: target.clone() for pair, target in self.targets.items()}}

    def load_state_dict(self, state):
        """Take up what `state_dict` returned."""
        self.targets = {pair: target.clone() for pair, target in state["targets"].items()}


GRADVAC = Technique(
    "gradvac", GradVac, paper="Wang et al. 2021, arxiv.org/abs/2010.05874",
    does="Turns the tasks' gradients towards the cosine that they usually have.",
    use="When tasks conflict (see the cosines in the log). No effect on a tenth of the rows (.000).",
    aka=("gradient-vaccine", "vaccine"), likely={"decay": "beta", "momentum": "beta"}, valid={"beta": Range(0, 1)},
    per_task=True)
