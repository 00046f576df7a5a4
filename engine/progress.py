"""What a run shows while it trains: a line of progress, and the mean losses since somebody last looked."""

import itertools
import shutil
import sys
import time

import torch
from tqdm import tqdm

from engine import distributed
from engine.losses import needed
from extensions.specs import name_of
from tasks import TASKS


class Progress:
    """A tqdm bar with loss, examples/s and ETA on a terminal; elsewhere a plain line now and then."""

    def __init__(self, total, label):
        self.total, self.label = total, label
        on_terminal = (sys.stderr.isatty() and shutil.get_terminal_size((0, 0)).columns > 0
                       and distributed.is_main())
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

    def rate(self):
        """Return examples a second."""
        return round(self.examples / (time.monotonic() - self.start), 1)

    def close(self):
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


class MeanLosses:
    """Running means of the task losses, kept on the device until somebody looks."""

    def __init__(self, sums=None, counts=None):
        self.sums, self.counts = dict(sums or {}), dict(counts or {})

    def add(self, losses):
        """Take in the {task: loss} of a step."""
        for task, loss in losses.items():
            self.sums[task] = self.sums.get(task, 0) + loss
            self.counts[task] = self.counts.get(task, 0) + 1

    def means(self):
        """Return {task: mean loss} as floats; this waits for the device."""
        return {task: float(total) / self.counts[task] for task, total in self.sums.items()}

    def merged(self, other):
        """Return the means of both together."""
        tasks = {**self.sums, **other.sums}
        return MeanLosses({task: self.sums.get(task, 0.0) + float(other.sums.get(task, 0.0)) for task in tasks},
                          {task: self.counts.get(task, 0) + other.counts.get(task, 0) for task in tasks})

    def state(self):
        """Return what the constructor takes, on the CPU."""
        return {"sums": {task: total.cpu() if isinstance(total, torch.Tensor) else total
                         for task, total in self.sums.items()}, "counts": dict(self.counts)}


def announce(schedule, losses, epochs):
    """Print each task's batches, how its pairs are encoded where a loss decides that, and every epoch's counts."""
    for task, loader in schedule.loaders.items():
        need, loss = needed(losses, "pair_encoding", task)
        apart = TASKS[task].is_pair and need == "bi"
        print(f"{task}: {loader.described()}" + (f"; pairs encoded apart, as {name_of(loss)} needs" if apart else ""))
    for epoch in range(epochs):
        counts = schedule.counts(epoch)
        if epoch == 0 or counts != schedule.counts(epoch - 1):
            since = f" from epoch {epoch + 1} on" if epoch else ""
            print(f"batches an epoch{since}: {', '.join(f'{task} {n}' for task, n in counts.items())}")


def note_idle_flags(steps, lengths, counts, *, eval_every=None, patience=None, init=None):
    """Print which flags do nothing, and which tasks are not trained, as the run has that many steps and no more.

    Of every epoch `lengths` has the number of steps, and `counts` the {task: number of batches}.
    """
    every = eval_every or steps
    if every > steps:
        print(f"note: --eval_every {every} is more than the run's {steps} steps: it is scored once, at its end")
    begun = [epoch for epoch, start in enumerate(itertools.accumulate([0, *lengths[:-1]])) if start < steps]
    scorings = -(-steps // every) if eval_every else len(begun)
    scorings += bool(init)
    if patience and patience >= scorings - 1:  # the first is the best so far
        print(f"note: --patience {patience} cannot end this run early, which is scored {scorings} times")
    without = [task for task in counts[0] if not any(counts[epoch][task] for epoch in begun)]
    if without:
        print(f"note: {', '.join(without)}: no batch in the run's {steps} steps")
