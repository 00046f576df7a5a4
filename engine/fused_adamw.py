"""The contract's AdamW in torch's fused kernel: one pass over memory, and a part that a CUDA graph can replay."""

import functools
import math
from collections import defaultdict

import torch

from optimizer import AdamW


class FusedAdamW(AdamW):
    """`AdamW`, same arguments, results (to 1e-6) and `state_dict`, on CPU and CUDA in one kernel for all parameters.

    torch's kernel divides exp_avg by 1 - β₁ᵗ and √exp_avg_sq by √(1 - β₂ᵗ) before it adds eps, and decays first.
    Told a t so large that βᵗ is 0, it takes p to p - lr' exp_avg / (√exp_avg_sq + eps): with lr' = α this is the
    contract's update. The decay p -= lr weight_decay p is a pass of its own after it, over the groups that decay.
    Other devices and dtypes take the parent's path.
    """

    def plan(self):
        """Return the update of the parameters that have a gradient now; allocate the state that they still lack."""
        return Plan(self)

    @torch.no_grad()
    def step(self, closure=None, *, skip=None, scale=None):
        """Update every parameter that has a gradient; return the loss of `closure`, which is run first.

        `skip` and `scale` are those of `Plan.apply`. Raises RuntimeError for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self.plan()
        plan.advance()
        plan.apply(skip, scale)
        return loss


class Plan:
    """One update in two halves: `advance` is the host's, counted anew every step, `apply` is the device's alone.

    A CUDA graph that captured `apply` updates from the same `.grad` tensors at every replay; `advance` before each
    keeps the step counts and hands the step's learning rates over in device memory.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        cohorts = defaultdict(list)
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                if p.grad is not None:
                    fused = fits_the_kernel(p)
                    # A parameter that sometimes has no gradient (another task's head) counts its own steps.
                    steps = state_of(optimizer, p)["step"] if fused else None
                    cohorts[index, p.device, p.dtype, fused, steps].append(p)
        self.cohorts = [Cohort(params, optimizer, optimizer.param_groups[index], fused)
                        for (index, _, _, fused, _), params in cohorts.items()]

    def fits(self):
        """Tell whether this is still the next update.

        It is not when parameters that were updated together have since been updated apart, nor when the optimizer has
        loaded another state.
        """
        return all(cohort.stands() for cohort in self.cohorts)

    def advance(self):
        """Count this step and set its learning rates; every `apply` takes one call of this before it."""
        for cohort in self.cohorts:
            cohort.advance()

    @torch.no_grad()
    def apply(self, skip=None, scale=None):
        """Update the parameters. Both options are 0-dim float tensors on their device.

        `skip` leaves all as it is where it is 1; gradients are divided by `scale` first, in the same pass.

        Raises RuntimeError where a CUDA graph is being captured and a parameter takes the parent's path.
        """
        for cohort in self.cohorts:
            cohort.apply(skip, scale)


class Cohort:
    """Parameters of one group, device and dtype that have taken equally many steps, and so share one α."""

    def __init__(self, params, optimizer, group, fused):
        self.params, self.optimizer, self.group, self.fused = params, optimizer, group, fused
        self.states = [optimizer.state[p] for p in params] if fused else []
        # α, and the share of p that the decay takes: a captured kernel reads them where the next step writes them.
        on_device = fused and in_device_memory(params[0].device)
        self.alpha, self.decay = (torch.zeros((), device=params[0].device) if on_device else 0.0 for _ in range(2))

    def stands(self):
        """Tell whether the parameters still have this state, and one step count."""
        states = (self.optimizer.state[p] for p in self.params) if self.fused else ()
        return (all(state is ours for state, ours in zip(states, self.states, strict=True))
                and len({state["step"] for state in self.states}) <= 1)

    def advance(self):
        """Count one step; set α and the decay to that step's."""
        if not self.fused:
            return  # the parent counts when it updates
        group, t = self.group, self.states[0]["step"] + 1
        for state in self.states:
            state["step"] = t
        alpha = group["lr"]
        if group["correct_bias"]:
            beta1, beta2 = group["betas"]
            alpha *= math.sqrt(1 - beta2**t) / (1 - beta1**t)
        decay = group["lr"] * group["weight_decay"]
        if isinstance(self.alpha, torch.Tensor):
            self.alpha.fill_(alpha)
            if decay:
                self.decay.fill_(decay)
        else:
            self.alpha, self.decay = alpha, decay

    def apply(self, skip, scale):
        """Take the formula to the parameters."""
        if not self.fused:
            if self.params[0].is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"no CUDA graph of a step on {self.params[0].dtype} or non-contiguous parameters")
            if skip is None or not skip:
                if scale is not None:
                    torch._foreach_div_([p.grad for p in self.params], scale)
                self.optimizer._update(self.params, self.group)
            return
        beta1, beta2 = self.group["betas"]
        torch._fused_adamw_(
            self.params, [p.grad for p in self.params], [state["exp_avg"] for state in self.states],
            [state["exp_avg_sq"] for state in self.states], [], [late(self.params[0].device)] * len(self.params),
            lr=self.alpha, beta1=beta1, beta2=beta2, eps=self.group["eps"], weight_decay=0.0, amsgrad=False,
            maximize=False, grad_scale=scale, found_inf=skip)
        if self.group["weight_decay"] > 0:
            # p -= lr·wd p, as a step of SGD with p for its own gradient. Not p *= 1 - lr·wd, which is what the CPU's
            # AdamW kernel would do: so close to 1 the factor itself has a rounding error in float32.
            torch._fused_sgd_(
                self.params, self.params, [], lr=self.decay, momentum=0.0, weight_decay=0.0, dampening=0.0,
                nesterov=False, maximize=False, is_first_step=False, found_inf=skip)


def fits_the_kernel(p):
    """Tell whether the fused kernel takes p and its gradient: dense, contiguous, full precision, CPU or CUDA."""
    return (p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64)
            and not p.grad.is_sparse and p.is_contiguous() and p.grad.is_contiguous())


def in_device_memory(device):
    """Tell whether α must be a tensor on `device`, where captured kernels read it, instead of a number."""
    return device.type == "cuda"


def state_of(optimizer, p):
    """Return the optimizer's state of p, made if this is its first step."""
    state = optimizer.state[p]
    if not state:
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return state


@functools.cache
def late(device):
    """Return, on `device`, a step count t so large that βᵗ is 0 for every β that float32 can tell from 1."""
    return torch.full((), 1e9, device=device)
