"""AdamW by hand: Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019)."""

import math
from collections import defaultdict

import torch
from torch.optim import Optimizer


class AdamW(Optimizer):
    """AdamW with the efficient bias correction (https://arxiv.org/abs/1412.6980, end of section 2).

    Step t takes a parameter p with gradient g to

        exp_avg    = β₁ exp_avg    + (1 - β₁) g
        exp_avg_sq = β₂ exp_avg_sq + (1 - β₂) g²
        α          = lr √(1 - β₂ᵗ) / (1 - β₁ᵗ)            (α = lr without `correct_bias`)
        p          = p - α exp_avg / (√exp_avg_sq + eps)
        p          = p - lr weight_decay p

    `torch.optim.AdamW` differs in two ways. It corrects √exp_avg_sq itself, which leaves only √(1 - β₂ᵗ) eps of
    the eps here: it matters for gradients near eps in early steps. And it decays before the gradient's update.

    `params` are parameters or groups of them, which may set hyper-parameters of their own. Raises ValueError for
    one out of range.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, correct_bias=True):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)

    def add_param_group(self, param_group):
        """Add a group of parameters; raise ValueError when one of its hyper-parameters is out of range."""
        group = {**self.defaults, **param_group}
        for name in ("lr", "eps", "weight_decay"):
            if not 0.0 <= group[name]:
                raise ValueError(f"Invalid {name}: {group[name]} - should be >= 0.0")
        for index, beta in enumerate(group["betas"]):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta} - should be in [0.0, 1.0)")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; return the loss of `closure`, which is run first.

        Raises RuntimeError for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            # The _foreach_ operations below take lists of tensors that share device and dtype.
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.device, p.dtype].append(p)
            for params in alike.values():
                self._update(params, group)
        return loss

    def _update(self, params, group):
        """Take the class's formula to all of `params` at once, one operation for the whole list."""
        beta1, beta2 = group["betas"]
        lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]

        for p in params:
            if p.grad.is_sparse:
                raise RuntimeError("AdamW does not support sparse gradients, consider SparseAdam instead")
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["step"] += 1

        grads = [p.grad for p in params]
        exp_avg = [self.state[p]["exp_avg"] for p in params]
        exp_avg_sq = [self.state[p]["exp_avg_sq"] for p in params]
        # A parameter that sometimes has no gradient (another task's head) counts its own steps.
        steps = [self.state[p]["step"] for p in params]
        if group["correct_bias"]:
            alphas = [lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) for t in steps]
        else:
            alphas = [lr] * len(params)

        torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(exp_avg_sq)
        torch._foreach_add_(denominators, eps)
        torch._foreach_addcdiv_(params, exp_avg, denominators, [-alpha for alpha in alphas])
        if weight_decay > 0:
            # Not p *= 1 - lr·wd: so close to 1 the factor itself has a rounding error in float32.
            torch._foreach_add_(params, params, alpha=-lr * weight_decay)
