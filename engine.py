"""One training step and the loop around it, shared by both training scripts.

A model here is any module with `logits(batch)`; a schedule yields {task: batch} for one step at a time;
a loss is `fn(model, batch)`. The step: batches → autocast → losses → gradient → clip → optimizer → log.
"""

import argparse
import contextlib
import itertools
import math
import shlex
import shutil
import sys
import time

import torch
from tqdm import tqdm

from checkpoint import FINE_TUNE_MODES
from datasets import TRUNCATIONS
from extensions import GRADIENTS, PARAMETER_GROUPS, PENALTIES, from_spec
from optimizer import AdamW
from utils import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that names the defaults, where there are any."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose `@FILE` holds flags as on a command line, many a line, with # comments."""

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)

    def convert_arg_line_to_args(self, line):
        return shlex.split(line, comments=True)


def number(kind, minimum, maximum=math.inf):
    """Return an argparse type: an int or float from `minimum` to `maximum`."""

    def check(text):
        value = kind(text)
        if not minimum <= value <= maximum:
            bound = f"at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    check.__name__ = kind.__name__  # argparse names it when the text is no number
    return check


def add_arguments(parser, learning_rates):
    """Add the flags that both training scripts have; `learning_rates` is {option: default of --lr}."""
    parser.learning_rates = learning_rates
    parser.add_argument("--seed", type=number(int, 0), default=11711, help="of every random choice")
    parser.add_argument("--epochs", type=number(int, 1), default=10, help="passes over the training rows")
    parser.add_argument("--option", choices=("pretrain", "finetune"), default="pretrain",
                        help="pretrain: the BERT parameters are frozen; finetune: they are updated too")
    parser.add_argument("--fine-tune-mode", choices=tuple(FINE_TUNE_MODES), help="the spring 2024 names of --option")
    parser.add_argument("--use_gpu", action="store_true", help="train on CUDA, or else on Apple's MPS")
    parser.add_argument("--batch_size", type=number(int, 1), default=8, help="rows of a training batch")
    parser.add_argument("--hidden_dropout_prob", type=number(float, 0, 1), default=0.3, help="dropout of the heads")
    parser.add_argument("--encoder_dropout_prob", type=number(float, 0, 1), default=0.1, help="dropout inside BERT")
    parser.add_argument("--lr", type=number(float, 0), help="peak learning rate (default: "
                        + ", ".join(f"{lr:g} to {option}" for option, lr in learning_rates.items()) + ")")
    parser.add_argument("--pretrained", default="bert-base-uncased",
                        help="hub id, directory, file or URL of the weights, or minilm for the packaged ones")
    parser.add_argument("--max_length", type=number(int, 5), default=512, help="tokens of a text, or of a packed pair")
    parser.add_argument("--truncation", choices=TRUNCATIONS, default="head",
                        help="which end of a long text is kept; a packed pair loses the end of its longer text")
    parser.add_argument("--warmup", type=number(float, 0, 1), default=0.1,
                        help="share of the steps in which lr rises from 0")
    parser.add_argument("--weight_decay", type=number(float, 0), default=0.01,
                        help="by default of all but biases and layer norms")
    parser.add_argument("--param_groups", type=spec_of(PARAMETER_GROUPS), default="no-decay", metavar="SPEC",
                        help=f"{', '.join(PARAMETER_GROUPS)}: which parameters share learning rate and weight decay")
    parser.add_argument("--penalty", type=spec_of(PENALTIES, "none"), action="append", metavar="SPEC",
                        help=f"{', '.join(PENALTIES)}: a regularizer added to the losses; repeat the flag for several, "
                        "none takes back those named before")
    parser.add_argument("--max_grad_norm", type=number(float, 1e-12), default=1.0,
                        help="gradients are clipped to this L2 norm")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="auto: bf16 autocast where the processor computes in it")
    parser.add_argument("--max_steps", type=number(int, 1),
                        help="stop after this many optimizer steps, then score and write")
    parser.add_argument("--filepath", help="where the best checkpoint goes; by default a name under runs/")


def spec_of(table, *words):
    """Return an argparse type that checks a technique's spec against `table` (or is one of `words`) and returns it."""

    def check(spec):
        try:
            if spec not in words:
                from_spec(spec, table)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return spec

    return check


def note_weights(args):
    """Say so when a run does not start from the only weights that the course's rules admit."""
    if args.pretrained != "bert-base-uncased":
        print(f"note: the course's rules admit only bert-base-uncased for grading, and this run starts from "
              f"{args.pretrained}")


def make_optimizer(model, args):
    """Return AdamW over the parameter groups that `args` names."""
    groups = from_spec(args.param_groups, PARAMETER_GROUPS)
    return AdamW(groups(model, args.lr, weight_decay=args.weight_decay), lr=args.lr)


def penalties_of(specs):
    """Return the penalties that a list of specs names: of one name the last counts, "none" takes back all before."""
    chosen = {}
    for spec in specs or []:
        if spec == "none":
            chosen.clear()
        else:
            chosen[spec.partition(":")[0]] = from_spec(spec, PENALTIES)
    return list(chosen.values())


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
    """Return torch's LambdaLR: linear up over the share `warmup` of the steps, then linear down to 0 after the last."""
    warmup_steps = math.ceil(warmup * total_steps)

    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Progress:
    """A tqdm bar with loss, examples/s and ETA on a terminal; elsewhere a plain line now and then."""

    def __init__(self, total, label):
        self.total, self.label = total, label
        on_terminal = sys.stderr.isatty() and shutil.get_terminal_size((0, 0)).columns > 0
        # Narrower than tqdm's own, so that the losses of three tasks fit into 80 columns.
        self.bar = tqdm(total=total, desc=label, bar_format="{desc} {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
                        ) if on_terminal else None
        self.interval = 20 if self.bar is None else 1  # seconds between two looks at the losses
        self.steps = self.examples = 0
        self.start = self.last = time.monotonic()

    def advance(self, examples):
        """Count one step of that many examples."""
        self.steps += 1
        self.examples += examples
        if self.bar is not None:
            self.bar.update()

    def due(self):
        """Tell whether it is time to show the losses again: seldom, as reading them waits for the device."""
        return time.monotonic() - self.last >= self.interval

    def show(self, losses):
        """Show the mean losses so far, {task: loss}."""
        self.last = time.monotonic()
        seconds = self.last - self.start
        text = f"{' '.join(f'{task} {loss:.3f}' for task, loss in losses.items())}, {self.examples / seconds:.0f}"
        if self.bar is not None:
            self.bar.set_postfix_str(f"{text} examples/s")
        else:
            left = seconds / self.steps * (self.total - self.steps)
            print(f"{self.label}: step {self.steps}/{self.total}, loss {text} examples/s, {left:.0f} s left",
                  flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
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
                                "or --precision fp32")
        return means


def task_loss(model, batch, loss, penalties):
    """Return one task's loss with its penalties; the batch carries the loss and its logits on to them."""
    batch = {**batch, "loss": loss}
    return loss(model, batch) + sum(penalty(model, batch, batch["logits"]) for penalty in penalties)


def train_one_epoch(model, steps, losses, optimizer, lr_schedule, device, *, penalties=(), gradient="sum",
                    precision="auto", max_grad_norm=1.0, total=None, label="train"):
    """Take one optimizer step for each {task: batch} of `steps`; return {task: mean loss}.

    `losses` is {task: fn(model, batch)}, `penalties` a list of fn(model, batch, logits), which the mean
    losses include; `total` is the number of steps, for the progress line. Raises UserError when a loss
    is no longer finite.
    """
    model.train()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    mean_losses = MeanLosses()
    with Progress(total, label) as progress:
        for batches in steps:
            batches = {task: to_device(batch, device) for task, batch in batches.items()}
            with autocast(device, precision):
                step_losses = {task: task_loss(model, batch, losses[task], penalties)
                               for task, batch in batches.items()}

            optimizer.zero_grad(set_to_none=True)
            GRADIENTS[gradient](step_losses, params)
            torch.nn.utils.clip_grad_norm_(params, max_grad_norm)
            optimizer.step()
            lr_schedule.step()

            mean_losses.add(step_losses)
            progress.advance(sum(len(batch["sent_ids"]) for batch in batches.values()))
            if progress.due():
                progress.show(mean_losses.means())
    return mean_losses.means()


def fit(model, schedule, losses, optimizer, evaluate, save_best, device, args):
    """Train for args.epochs (or args.max_steps), scoring after each epoch; return the best score.

    `schedule(epoch)` returns the list-like of an epoch's steps; `evaluate()` returns (score, text to
    print); `save_best()` is called whenever the score is the highest so far.
    """
    lengths = [len(schedule(epoch)) for epoch in range(args.epochs)]
    total_steps = min(sum(lengths), args.max_steps or math.inf)
    if not total_steps:
        raise UserError("there is nothing to train on: no rows, or no epochs")
    lr_schedule = linear_schedule(optimizer, total_steps, args.warmup)
    penalties = penalties_of(args.penalty)
    best, steps_left = -math.inf, total_steps
    for epoch in range(args.epochs):
        steps = min(lengths[epoch], steps_left)
        if steps == 0:
            break
        start = time.monotonic()
        means = train_one_epoch(
            model, itertools.islice(schedule(epoch), steps), losses, optimizer, lr_schedule, device,
            penalties=penalties, precision=args.precision, max_grad_norm=args.max_grad_norm, total=steps,
            label=f"epoch {epoch}")
        steps_left -= steps
        trained = time.monotonic()
        with autocast(device, args.precision):
            score, text = evaluate()
        loss = ", ".join(f"{task} {mean:.3f}" for task, mean in means.items())
        print(f"epoch {epoch}: train loss {loss}; dev {text} "
              f"({trained - start:.0f} s training, {time.monotonic() - trained:.0f} s scoring)", flush=True)
        if not math.isfinite(score):
            raise UserError(f"the dev score is {score}: training diverged; try a lower --lr, or --precision fp32")
        if score > best:
            best = score
            save_best()
    return best
