"""What all schedules share: a number of batches of each task an epoch, taken from passes that go on over epochs."""

import math

import numpy as np

from extensions.schedules._steps import Steps


class Schedule:
    """`counts(epoch)` of each task's batches, one batch a step, in random order.

    `loaders` is {task: Batches}, `epochs` the number of epochs of the run; `schedule(epoch)` returns the
    Steps of an epoch (from 0), a function of seed and epoch alone. Every task runs through passes of its own over its
    rows, each pass in a new order, and goes on where the epoch before has stopped: all rows of a task are seen
    equally often, to within one. Tasks without rows are left out. `joint` tells whether a step holds several tasks:
    only then is there something for GRADIENTS to combine, and only then do TASK_WEIGHTS weigh tasks against each
    other (alone in its step, a task's weight is largely undone by clipping and by AdamW, which knows no scale).
    """

    joint = False

    def __init__(self, loaders, seed=0, epochs=1):
        self.loaders = {task: loader for task, loader in loaders.items() if len(loader.dataset)}
        self.seed, self.epochs = seed, epochs
        self.lengths = {task: len(loader) for task, loader in self.loaders.items()}  # batches of a pass: of any pass
        self.sizes = {task: len(loader.dataset) for task, loader in self.loaders.items()}  # N_t, rows

    def counts(self, epoch):
        """Return {task: its number of batches in this epoch}."""
        raise NotImplementedError

    def batches(self, task, epoch):
        """Return the task's batches of this epoch, lists of rows."""
        start, length = sum(self.counts(earlier)[task] for earlier in range(epoch)), self.lengths[task]
        stop = start + self.counts(epoch)[task]
        first, last = start // length, math.ceil(stop / length)
        passes = [rows for i in range(first, last) for rows in self.loaders[task].batch_sampler.batches(i)]
        return passes[start - first * length : stop - first * length]

    def __call__(self, epoch):
        plan = [{task: rows} for task in self.loaders for rows in self.batches(task, epoch)]
        order = np.random.default_rng((self.seed, epoch)).permutation(len(plan))
        return Steps(self.loaders, [plan[i] for i in order])


class Rounds(Schedule):
    """One batch of every task, `rounds` times an epoch; a subclass sets `rounds`."""

    def resize(self, sizes):
        """Give tasks batches of another size, {task: rows}."""
        self.loaders.update({task: self.loaders[task].resized(rows) for task, rows in sizes.items()})
        self.lengths = {task: len(loader) for task, loader in self.loaders.items()}

    def counts(self, epoch):
        """Return {task: its number of batches in this epoch}."""
        return dict.fromkeys(self.loaders, self.rounds)

    def together(self, epoch):
        """Return the rounds of this epoch, a list of {task: rows of its batch}."""
        return [dict(zip(self.loaders, rows, strict=True))
                for rows in zip(*(self.batches(task, epoch) for task in self.loaders), strict=True)]


class PowerSampling(Schedule):
    """Task t is drawn with probability p_t = N_t^alpha / sum over s of N_s^alpha, N_t its rows.

    An epoch has `steps` steps, 0 for as many as all tasks together have batches. It holds the expected numbers of
    batches, p_t times its steps, rounded by largest remainder, rather than numbers left to chance.
    """

    def __init__(self, loaders, seed=0, epochs=1, steps=0):
        super().__init__(loaders, seed, epochs)
        self.steps = steps or sum(self.lengths.values())

    def alpha(self, epoch):
        """Return the exponent of this epoch."""
        raise NotImplementedError

    def counts(self, epoch):
        """Return {task: its number of batches in this epoch}."""
        alpha, largest = self.alpha(epoch), max(self.sizes.values(), default=1)
        powers = {task: (size / largest) ** alpha for task, size in self.sizes.items()}
        return largest_remainder(powers, self.steps)


def largest_remainder(weights, total):
    """Return {key: integer} that sum to `total`, in proportion to the weights (Hamilton; ties to the first)."""
    exact = {key: total * weight / sum(weights.values()) for key, weight in weights.items()}
    counts = {key: math.floor(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: counts[key] - exact[key])  # the largest first
    for key in by_remainder[: total - sum(counts.values())]:
        counts[key] += 1
    return counts
