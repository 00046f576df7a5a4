"""One training step, shared by both training scripts: batches → autocast → losses → gradient → clip → optimizer.

A model here is any module with `logits(batch)`, a loss is `fn(model, batch)`. The loop around the step is training.py.
"""

import contextlib
import math

import torch

from engine import distributed
from engine.attention_backends import use_attention_backend
from engine.checks import NOTHING_TO_COMBINE
from engine.cuda_graphs import GraphedStep
from engine.fast_dropout import use_fast_dropout
from engine.fused_adamw import FusedAdamW
from engine.joint_graphs import JointGraphedStep
from engine.packed_attention import pack_attention
from extensions import GRADIENTS, PARAMETER_GROUPS, PENALTIES, TASK_WEIGHTS
from extensions.encoder import techniques_of
from extensions.gradients.gradient_sum import GradientSum
from extensions.penalties._divergence import logits_of
from extensions.specs import build, from_spec
from extensions.task_weights._task_weights import TaskWeights
from files.errors import UserError
from optimizer import AdamW


def make_optimizer(model, args):
    """Return AdamW over the parameter groups that `args` names, in one kernel unless --compile is none."""
    groups = from_spec(args.param_groups, PARAMETER_GROUPS)
    kind = AdamW if args.compile == "none" else FusedAdamW
    return kind(groups(model, args.lr, weight_decay=args.weight_decay), lr=args.lr)


def penalties_of(specs):
    """Return the penalties that a list of specs names: of one name the last counts, "none" takes back all before."""
    chosen = {}
    for spec in specs or []:
        if spec == "none":
            chosen.clear()
        else:
            chosen[spec.partition(":")[0]] = build(spec, PENALTIES)
    return list(chosen.values())


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


def task_loss(model, batch, loss, penalties):
    """Return one task's loss with its penalties; the batch carries the loss on to them."""
    batch = {**batch, "loss": loss, "encoded": []}
    return loss(model, batch) + sum(penalty(model, batch, logits_of(model, batch)) for penalty in penalties)


class TrainingStep:
    """One optimizer step over the parts of a step's rows.

    `losses` is {task: fn(model, batch)}; `gradient` and `weights` are one of GRADIENTS and one of TASK_WEIGHTS.
    `penalties` are fn(model, batch, logits), or objects with `of_weights(model)`, a loss that counts once a step. An
    object may also have `start(model)`, called here; `after_step(model)`, called after each update; and `state_dict`
    and `load_state_dict`, for checkpoints. A part is {task: batch} on the device, with batch["share"] the share of the
    step's rows of the task that it holds: what a loss averages over the part counts that much, so that the update is
    the whole step's, however it is split (several processes, --accumulate). batch["weight"], 1.0 where there is none,
    is the schedule's factor of the task's loss.
    """

    def __init__(self, model, losses, optimizer, *, penalties=(), gradient=None, weights=None, precision="auto",
                 max_grad_norm=1.0, device):
        self.model, self.losses, self.optimizer, self.penalties = model, losses, optimizer, penalties
        self.gradient, self.weights = gradient or GradientSum(), weights or TaskWeights(losses)
        self.of_batches = [penalty for penalty in penalties if not hasattr(penalty, "of_weights")]
        self.of_weights = [penalty for penalty in penalties if hasattr(penalty, "of_weights")]
        self.precision, self.max_grad_norm, self.device = precision, max_grad_norm, device
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.skipped = torch.zeros(()).to(device)  # updates left out since a loss or gradient was not finite
        for penalty in penalties:
            if hasattr(penalty, "start"):
                penalty.start(model)

    def __call__(self, parts):
        """Update the model; return {task: loss} of the step, before the update."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.compute(parts)
        self.add_up(losses)
        self.update(losses)
        return losses

    def compute(self, parts):
        """Write the gradient of the parts' weighted losses into `.grad`; return {task: loss}, detached."""
        losses = self.accumulate(parts)
        self.finish()
        return losses

    def accumulate(self, parts):
        """Add the gradient of the parts' weighted losses to what the gradient has; return {task: loss}, detached."""
        totals = {}
        for batches in parts:
            with autocast(self.device, self.precision):
                losses = {task: task_loss(self.model, batch, self.losses[task], self.of_batches)
                          for task, batch in batches.items()}
            weighted = {task: loss * batches[task]["share"] * batches[task].get("weight", 1.0)
                        for task, loss in self.weights(losses).items()}
            self.gradient.backward(weighted, self.params)
            for task, loss in losses.items():
                loss = loss.detach() * batches[task]["share"]
                totals[task] = totals[task] + loss if task in totals else loss
        return totals

    def finish(self):
        """Make one gradient of what all parts have added, with that of the losses of the weights."""
        self.gradient.finish(self.params, distributed.add_up)
        for penalty in self.of_weights:  # `add_up` sums what it adds, unless the gradient is whole already
            share = 1 if self.gradient.per_task else 1 / distributed.world_size()
            (penalty.of_weights(self.model) * share).backward()

    def add_up(self, losses):
        """Sum gradients and losses over all processes; gradients by task have been summed by then."""
        grads = [] if self.gradient.per_task else [p.grad for p in self.params if p.grad is not None]
        distributed.add_up([*grads, *losses.values()])

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

    def update(self, losses):
        """Take the optimizer's step with the clipped gradient."""
        if isinstance(self.optimizer, FusedAdamW):
            plan = self.optimizer.plan()
            plan.advance()
            self.apply(plan, losses)
            return
        skip, scale = self.clip(losses)
        if not skip:  # on a GPU this waits for it: any other optimizer knows nothing of skipping
            torch._foreach_div_([p.grad for p in self.params if p.grad is not None], scale)
            self.optimizer.step()
        self.after_update(losses)

    def apply(self, plan, losses):
        """Carry out an update that FusedAdamW has planned, without waiting for the device."""
        plan.apply(*self.clip(losses))
        self.after_update(losses)

    @torch.no_grad()
    def after_update(self, losses):
        """Let the techniques that follow the weights or the losses take note of the step."""
        self.weights.after_step(losses)
        for penalty in self.penalties:
            if hasattr(penalty, "after_step"):
                penalty.after_step(self.model)

    def stateful(self):
        """Return the techniques whose state a checkpoint must hold, in a fixed order."""
        return [part for part in (self.gradient, self.weights, *self.penalties) if hasattr(part, "state_dict")]


def use_faster_modules(model, device, args):
    """Let some of the model's modules give way, in place, to the faster ones that `args` ask for; return which."""
    how = "the modules as they stand"
    if args.compile != "none":
        how = "packed attention"
        pack_attention(model)
        if device.type == "cpu":
            use_fast_dropout(model)
    dtype = torch.bfloat16 if in_bf16(device, args.precision) else torch.float32
    return f"{how}, {use_attention_backend(model, args.attention_backend, device, dtype)}"


def make_step(model, losses, optimizer, device, args, joint=False):
    """Return the training step that `args` describe; some of the model's modules give way to faster ones.

    `joint` tells whether a step has batches of several tasks. Raises UserError for what only such steps can have.
    """
    weights = build(args.task_weights, TASK_WEIGHTS, tuple(losses)).to(device)
    gradient = build(args.gradient, GRADIENTS)
    if gradient.per_task and not joint:
        raise UserError(NOTHING_TO_COMBINE.format(args.gradient))
    if not (joint or weights.alike):
        print(f"note: every step here is of one task, and clipping and AdamW undo most of --task_weights "
              f"{args.task_weights}; --schedule round-robin takes the tasks together")
    learned = list(weights.parameters())
    if learned:
        lr = args.lr if weights.lr is None else weights.lr
        optimizer.add_param_group({"params": learned, "lr": lr, "weight_decay": 0.0})
    penalties = [*penalties_of(args.penalty), *techniques_of(model, "of_weights")]
    step = TrainingStep(model, losses, optimizer, penalties=penalties, gradient=gradient,
                        weights=weights, precision=args.precision, max_grad_norm=args.max_grad_norm, device=device)
    bf16 = in_bf16(device, args.precision)
    fallback = "" if bf16 or args.precision == "fp32" else " (no bf16 in this processor)"
    how = use_faster_modules(model, device, args) + ("" if args.compile == "none" else ", fused AdamW")
    if args.compile == "graphs" and device.type != "cuda":
        raise UserError(f"--compile graphs: there are CUDA graphs on CUDA alone, and this is {device.type}; "
                        "leave the flag out")
    if args.compile == "inductor":
        model.bert.compile(dynamic=True)
        how += ", compiled by inductor"
    if args.compile != "none" and device.type == "cuda":
        if gradient.per_task:
            how += f", no CUDA graphs: {args.gradient} keeps the tasks' gradients apart"
        elif getattr(model.bert, "waits", False):
            how += ", no CUDA graphs: the encoder waits for the device"
        elif techniques_of(model, "start_epoch"):
            how += ", no CUDA graphs: what is trained changes between epochs"
        else:
            step = JointGraphedStep(step) if joint else GraphedStep(step)
            how += ", CUDA graphs"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    print(f"training {trained:,} of {total:,} parameters in {'bf16' if bf16 else 'fp32'}{fallback}, {how}")
    return step
