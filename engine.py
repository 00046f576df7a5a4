"""One training step and the loop around it, shared by both training scripts.

A model here is any module with `logits(batch)`; a schedule yields {task: batch} for one step at a time;
a loss is `fn(model, batch)`. The step: batches → autocast → losses → gradient → clip → optimizer → log.
"""

import argparse
import contextlib
import itertools
import math
import shlex
import sys
import time

import torch
from tqdm import tqdm

from checkpoint import FINE_TUNE_MODES
from datasets import TRUNCATIONS
from extensions import GRADIENTS, PARAMETER_GROUPS, from_spec
from optimizer import AdamW
from utils import UserError

LOG_EVERY = 50  # steps between two looks at the losses, each of which waits for the device


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose `@FILE` holds flags as on a command line, many a line, with # comments."""

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def convert_arg_line_to_args(self, line):
        return shlex.split(line, comments=True)


def add_arguments(parser, learning_rates):
    """Add the flags that both training scripts have; `learning_rates` is {option: default of --lr}."""
    parser.learning_rates = learning_rates
    parser.add_argument("--seed", type=int, default=11711, help="of every random choice")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training rows")
    parser.add_argument("--option", choices=("pretrain", "finetune"), default="pretrain",
                        help="pretrain: the BERT parameters are frozen; finetune: they are updated too")
    parser.add_argument("--fine-tune-mode", choices=tuple(FINE_TUNE_MODES), help="the spring 2024 names of --option")
    parser.add_argument("--use_gpu", action="store_true", help="train on CUDA, or else on Apple's MPS")
    parser.add_argument("--batch_size", type=int, default=8, help="rows of a training batch")
    parser.add_argument("--hidden_dropout_prob", type=float, default=0.3, help="dropout of the heads")
    parser.add_argument("--encoder_dropout_prob", type=float, default=0.1, help="dropout inside BERT")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: "
                        + ", ".join(f"{lr:g} to {option}" for option, lr in learning_rates.items()) + ")")
    parser.add_argument("--pretrained", default="bert-base-uncased",
                        help="hub id, directory, file or URL of the weights, or minilm for the packaged ones")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of a text, or of a packed pair")
    parser.add_argument("--truncation", choices=TRUNCATIONS, default="head", help="which end of a long text is kept")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps in which lr rises from 0")
    parser.add_argument("--weight_decay", type=float, default=0.01, help="of all but biases and layer norms")
    parser.add_argument("--param_groups", type=spec_of(PARAMETER_GROUPS), default="no-decay", metavar="SPEC",
                        help=f"{', '.join(PARAMETER_GROUPS)}: which parameters share learning rate and weight decay")
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this L2 norm")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="auto: bf16 autocast where the processor computes in it")
    parser.add_argument("--max_steps", type=int, help="stop after this many optimizer steps, then score and write")
    parser.add_argument("--filepath", help="where the best checkpoint goes; by default a name under runs/")


def spec_of(table):
    """Return an argparse type that checks a technique's spec against `table` and leaves it a string."""

    def check(spec):
        try:
            from_spec(spec, table)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return spec

    return check


def make_optimizer(model, args):
    """Return AdamW over the parameter groups that `args` names."""
    groups = from_spec(args.param_groups, PARAMETER_GROUPS)
    return AdamW(groups(model, args.lr, weight_decay=args.weight_decay), lr=args.lr)


def with_defaults(args, parser):
    """Return a namespace with `args` and, for what it lacks, the parser's defaults.

    The default learning rate is `parser.learning_rates[option]`.
    """
    args = argparse.Namespace(**{**vars(parser.parse_args([])), **vars(args)})
    if args.fine_tune_mode is not None:
        args.option = FINE_TUNE_MODES[args.fine_tune_mode]
    if args.lr is None:
        args.lr = parser.learning_rates[args.option]
    return args


def bf16_in_hardware(device):
    """Tell whether `device` multiplies bf16 matrices in hardware, as far as torch can say."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def autocast(device, precision="auto"):
    """Return the context in which forward passes run: bf16 autocast, or nothing for fp32."""
    if precision == "bf16" or (precision == "auto" and bf16_in_hardware(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def to_device(batch, device):
    """Return the batch with its tensors on `device`; float64 becomes float32 first, as MPS has none."""
    return {
        name: (value.float() if value.dtype == torch.float64 else value).to(device, non_blocking=True)
        if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def linear_schedule(optimizer, total_steps, warmup):
    """Return torch's LambdaLR: linear from 0 over the share `warmup` of the steps, then linear to 0."""
    warmup_steps = math.ceil(warmup * total_steps)

    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Progress:
    """A tqdm bar with loss, examples/s and ETA on a terminal; elsewhere a plain line now and then."""

    LINE_EVERY = 20  # seconds

    def __init__(self, total, label):
        self.total, self.label = total, label
        self.bar = tqdm(total=total, desc=label, unit="step") if sys.stderr.isatty() else None
        self.steps = self.examples = 0
        self.start = self.last_line = time.monotonic()

    def advance(self, examples):
        """Count one step of that many examples."""
        self.steps += 1
        self.examples += examples
        if self.bar is not None:
            self.bar.update()

    def show(self, losses):
        """Show the mean losses so far, {task: loss}."""
        now = time.monotonic()
        speed = f"{self.examples / (now - self.start):.0f} examples/s"
        text = " ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
        if self.bar is not None:
            self.bar.set_postfix_str(f"{text}, {speed}")
        elif now - self.last_line >= self.LINE_EVERY:
            self.last_line = now
            eta = (now - self.start) / self.steps * (self.total - self.steps)
            print(f"{self.label}: step {self.steps}/{self.total}, loss {text}, {speed}, {eta:.0f} s left", flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()


class MeanLosses:
    """Running means of the task losses, kept on the device until somebody looks."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, losses):
        for task, loss in losses.items():
            self.sums[task] = self.sums.get(task, 0) + loss.detach()
            self.counts[task] = self.counts.get(task, 0) + 1

    def means(self):
        """Return {task: mean loss} as floats; the one place in the loop that waits for the device."""
        means = {task: float(total) / self.counts[task] for task, total in self.sums.items()}
        for task, mean in means.items():
            if not math.isfinite(mean):
                raise UserError(f"the loss of {task} is {mean}: training diverged; try a lower --lr, "
                                "or --precision fp32. The best checkpoint so far is kept")
        return means


def train_one_epoch(model, steps, losses, optimizer, lr_schedule, device, *, gradient="sum", precision="auto",
                    max_grad_norm=1.0, total=None, label="train"):
    """Take one optimizer step for each {task: batch} of `steps`; return {task: mean loss}.

    `losses` is {task: fn(model, batch)}; `total` is the number of steps, for the progress line.
    Raises UserError when a loss is no longer finite.
    """
    model.train()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    progress, mean_losses = Progress(total, label), MeanLosses()
    for step, batches in enumerate(steps, 1):
        batches = {task: to_device(batch, device) for task, batch in batches.items()}
        with autocast(device, precision):
            step_losses = {task: losses[task](model, batch) for task, batch in batches.items()}

        optimizer.zero_grad(set_to_none=True)
        GRADIENTS[gradient](step_losses, params)
        torch.nn.utils.clip_grad_norm_(params, max_grad_norm)
        optimizer.step()
        lr_schedule.step()

        mean_losses.add(step_losses)
        progress.advance(sum(len(batch["sent_ids"]) for batch in batches.values()))
        if step % LOG_EVERY == 0:
            progress.show(mean_losses.means())
    progress.close()
    return mean_losses.means()


def fit(model, schedule, losses, optimizer, evaluate, save_best, device, args):
    """Train for args.epochs (or args.max_steps), scoring after each epoch; return the best score.

    `schedule(epoch)` returns the list-like of an epoch's steps; `evaluate()` returns (score, text to
    print); `save_best()` is called whenever the score is the highest so far.
    """
    lengths = [len(schedule(epoch)) for epoch in range(args.epochs)]
    total_steps = min(sum(lengths), args.max_steps or math.inf)
    lr_schedule = linear_schedule(optimizer, total_steps, args.warmup)
    best, steps_left = -math.inf, total_steps
    for epoch in range(args.epochs):
        steps = min(lengths[epoch], steps_left)
        if steps == 0:
            break
        start = time.monotonic()
        means = train_one_epoch(
            model, itertools.islice(schedule(epoch), steps), losses, optimizer, lr_schedule, device,
            precision=args.precision, max_grad_norm=args.max_grad_norm, total=steps, label=f"epoch {epoch}")
        steps_left -= steps
        trained = time.monotonic()
        with autocast(device, args.precision):
            score, text = evaluate()
        loss = ", ".join(f"{task} {mean:.3f}" for task, mean in means.items())
        print(f"epoch {epoch}: train loss {loss}; dev {text} "
              f"({trained - start:.0f} s training, {time.monotonic() - trained:.0f} s scoring)", flush=True)
        if score > best:
            best = score
            save_best()
    return best
