"""One training step, shared by both training scripts: forward, backward, all-reduce, combine, clip, optimizer.

A model here is any module with `encode(task, batch)` and `score(task, encodings)`; a loss is `fn(forward)` of a
ForwardPass. The loop around the step is loop.py.
"""

import contextlib
import math

import torch

from engine import distributed
from engine.attention_backends import use_attention_backend
from engine.cuda_graphs import GraphedStep
from engine.fast_dropout import use_fast_dropout
from engine.fused_adamw import FusedAdamW
from engine.joint_graphs import JointGraphedStep
from engine.losses import penalties_of
from engine.packed_attention import pack_attention
from engine.run_folder import device_name
from engine.unpadded import UnpaddedModel
from extensions import GRADIENTS, PARAMETER_GROUPS, TASK_WEIGHTS, TaskWeights, WeightPenalty, as_penalty
from extensions.encoder import techniques_of
from extensions.forward import ForwardPass
from extensions.specs import build, from_spec
from files.errors import UserError
from optimizer import AdamW


def make_optimizer(model, *, lr, weight_decay=0.0, param_groups="flat", compile="auto"):
    """Return AdamW over the parameter groups of the spec `param_groups`, in one kernel unless `compile` is "none"."""
    groups = from_spec(param_groups, PARAMETER_GROUPS)
    kind = AdamW if compile == "none" else FusedAdamW
    return kind(groups(model, lr, weight_decay=weight_decay), lr=lr)


def bf16_in_hardware(device):
    """Tell whether `device` multiplies bf16 matrices in hardware, as far as torch can say."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def in_bf16(device, precision="auto"):
    """Tell whether forward passes run in bf16."""
    return precision == "bf16" or (precision == "auto" and bf16_in_hardware(device))


def autocast(device, precision="auto"):
    """Return the context in which forward passes run: bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if in_bf16(device, precision) else contextlib.nullcontext()


def part_to_device(part, device):
    """Return a `Part` with its batch on `device`."""
    return part._replace(batch=to_device(part.batch, device))


def to_device(batch, device):
    """Return the batch with its tensors on `device`; float64 becomes float32 first, as MPS has none."""
    return {
        name: (value.float() if value.dtype == torch.float64 else value).to(device, non_blocking=True)
        if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def lr_factor(step, total_steps, warmup=0.0, shape="linear"):
    """Return the share of the peak learning rate that step `step` (from 0) of `total_steps` has.

    It rises linearly over the share `warmup` of the steps, then falls to 0 after the last, "linear" or as half a
    "cosine" (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, equation 5), or stays ("constant").
    """
    warmup_steps = math.ceil(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[shape]


def set_learning_rates(optimizer, factor):
    """Give every parameter group `factor` times the learning rate that it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class TrainingStep:
    """One optimizer step over the parts of a step's rows.

    `losses` is {task: fn(forward)}; `gradient` and `weights` are one of GRADIENTS and one of TASK_WEIGHTS, `penalties`
    are fn(forward) or objects (extensions/penalties/_penalty.py). The rows come in parts, each {task: Part} on the
    device: what a loss averages over a part counts as much as its share of the rows, so that the update is the whole
    step's, however it is split (several processes, --accumulate).
    """

    def __init__(self, model, losses, optimizer, *, penalties=(), gradient=None, weights=None, precision="auto",
                 max_grad_norm=1.0, device):
        self.model, self.losses, self.optimizer = model, losses, optimizer
        self.gradient, self.weights = gradient or build("sum", GRADIENTS), weights or TaskWeights(losses)
        self.penalties = [as_penalty(penalty) for penalty in penalties]
        self.batch_penalties = [penalty for penalty in self.penalties if not isinstance(penalty, WeightPenalty)]
        self.weight_losses = [penalty.of_weights for penalty in self.penalties if isinstance(penalty, WeightPenalty)]
        self.weight_losses += [technique.of_weights for technique in techniques_of(model, "of_weights")]
        self.precision, self.max_grad_norm, self.device = precision, max_grad_norm, device
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.skipped = torch.zeros(()).to(device)  # updates left out since a loss or gradient was not finite
        for penalty in self.penalties:
            penalty.start(model)

    def __call__(self, parts):
        """Update the model; return {task: loss} of the step, before the update."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.forward_backward(parts)
        self.all_reduce(losses)
        self.combine_gradients()
        skip, scale = self.clip(losses)
        self.optimizer_step(skip, scale)
        self.after_step(losses)
        return losses

    def forward_backward(self, parts):
        """Add the gradient of this process's parts to what there is; return {task: loss}, detached."""
        totals = {}
        for part in parts:
            with autocast(self.device, self.precision):
                losses = {task: self.task_loss(task, batch) for task, (batch, _, _) in part.items()}
            weighted = {task: loss * part[task].share * part[task].weight
                        for task, loss in self.weights(losses).items()}
            self.gradient.backward(weighted, self.params)
            for task, loss in losses.items():
                loss = loss.detach() * part[task].share
                totals[task] = totals[task] + loss if task in totals else loss
        return totals

    def task_loss(self, task, batch):
        """Return a task's loss with its penalties, 0-dim."""
        loss = self.losses[task]
        forward = ForwardPass(self.model, task, batch, loss)
        return loss(forward) + sum(penalty(forward) for penalty in self.batch_penalties)

    def all_reduce(self, losses):
        """Sum gradients and losses over all processes."""
        messages = self.gradient.messages(self.params)
        messages[-1] += losses.values()
        for tensors in messages:
            distributed.add_up(tensors)

    def combine_gradients(self):
        """Make one gradient of the tasks', and add that of the losses of the weights, which are no batch's."""
        self.gradient.combine(self.params)
        for loss_of in self.weight_losses:
            loss_of(self.model).backward()

    def clip(self, losses):
        """Return (skip, scale) without waiting for the device: the gradient is to be divided by `scale` (0-dim).

        `scale` makes its norm at most max_grad_norm, as torch.nn.utils.clip_grad_norm_ does in a pass of its own.
        `skip` is 1.0 when this update must be left out, else 0.0: it must from the first loss or gradient on that is
        not finite, so that the weights of the step before stay.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.params if p.grad is not None])
        finite = torch.isfinite(norm + sum(losses.values()))
        self.skipped += (~finite | (self.skipped > 0)).float()
        return (self.skipped > 0).float(), ((norm + 1e-6) / self.max_grad_norm).clamp(min=1.0)

    def optimizer_step(self, skip, scale):
        """Update the weights with the gradient divided by `scale`, unless `skip` is 1."""
        if isinstance(self.optimizer, FusedAdamW):
            self.optimizer.step(skip=skip, scale=scale)
        elif not skip:  # on a GPU this waits for it: any other optimizer knows nothing of skipping
            torch._foreach_div_([p.grad for p in self.params if p.grad is not None], scale)
            self.optimizer.step()

    @torch.no_grad()
    def after_step(self, losses):
        """Let the techniques that follow the losses or the weights take note of the step."""
        self.weights.after_step(losses)
        for penalty in self.penalties:
            penalty.after_step(self.model)

    def stateful(self):
        """Return the techniques whose state a checkpoint must hold, in a fixed order."""
        return [part for part in (self.gradient, self.weights, *self.penalties) if part.state_dict() is not None]


def use_faster_modules(model, device, *, compile="auto", attention_backend="auto", precision="auto"):
    """Put faster modules in the place of some of the model's, unless `compile` is "none"; return which, a line.

    The attention uses `attention_backend`, one of attention_backends.BACKENDS, in any case.
    """
    how = "the modules as they stand"
    if compile != "none":
        how = "packed attention"
        pack_attention(model)
        if device.type == "cpu":
            use_fast_dropout(model)
    dtype = torch.bfloat16 if in_bf16(device, precision) else torch.float32
    return f"{how}, {use_attention_backend(model, attention_backend, device, dtype)}"


def make_step(model, losses, optimizer, device, *, lr, penalties=(), gradient="sum", task_weights="fixed",
              precision="auto", max_grad_norm=1.0, compile="auto", attention_backend="auto", joint=False):
    """Return the training step over {task: loss}; faster modules take the place of some of the model's.

    `penalties` (a list), `gradient` and `task_weights` are specs; `lr` is the learning rate of what task weights learn,
    where they have none of their own. `joint` tells whether a step has batches of several tasks. Raises UserError for
    what only such steps can have, and for CUDA graphs without CUDA.
    """
    weights, gradient_of = build(task_weights, TASK_WEIGHTS, tuple(losses)).to(device), build(gradient, GRADIENTS)
    if gradient_of.per_task and not joint:
        raise UserError(f"--gradient {gradient} needs batches of several tasks in one step; add --schedule "
                        "round-robin")
    if not (joint or weights.alike):
        print(f"note: every step here is of one task, and clipping and AdamW undo most of --task_weights "
              f"{task_weights}; --schedule round-robin takes the tasks together")
    learned = list(weights.parameters())
    if learned:
        optimizer.add_param_group({"params": learned, "lr": lr if weights.lr is None else weights.lr,
                                   "weight_decay": 0.0})
    step = TrainingStep(model, losses, optimizer, penalties=penalties_of(penalties), gradient=gradient_of,
                        weights=weights, precision=precision, max_grad_norm=max_grad_norm, device=device)
    bf16 = in_bf16(device, precision)
    fallback = "" if bf16 or precision == "fp32" else " (no bf16 in this processor)"
    how = use_faster_modules(model, device, compile=compile, attention_backend=attention_backend, precision=precision)
    how += "" if compile == "none" else ", fused AdamW"
    if compile == "graphs" and device.type != "cuda":
        raise UserError(f"--compile graphs: there are CUDA graphs on CUDA alone, and this is {device.type}; "
                        "leave the flag out")
    if compile == "inductor":
        model.bert.compile(dynamic=True)
        how += ", compiled by inductor"
    if compile != "none" and device.type == "cuda":
        reason = no_graphs(model, gradient_of, gradient)
        how += f", no CUDA graphs: {reason}" if reason else ", CUDA graphs"
        if not reason:
            step = JointGraphedStep(step) if joint else GraphedStep(step)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    precision_used = f"{'bf16' if bf16 else 'fp32'}{fallback}"
    print(f"{device_name(device)}: {precision_used}, {trained:,} of {total:,} parameters trained\nkernels: {how}")
    return step


def no_graphs(model, gradient, spec):
    """Return why steps cannot be CUDA graphs; None where they can."""
    if gradient.per_task:
        return f"{spec} keeps the tasks' gradients apart"
    if isinstance(model.bert, UnpaddedModel):
        return "the encoder waits for the device"
    if techniques_of(model, "start_epoch"):
        return "what is trained changes between epochs"
    return None
