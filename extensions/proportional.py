"""Proportional sampling: every batch of every task once an epoch, in random order."""

import numpy as np


class Proportional:
    """Draw tasks with probability proportional to their remaining batches (Sanh et al. 2019, section 3.3).

    `loaders` is {task: loader over a BucketBatchSampler}; `schedule(epoch)` returns the epoch's steps,
    an iterable with a length of {task: batch}, each a batch of one task. The order is a function of
    seed and epoch alone.
    """

    def __init__(self, loaders, seed=0):
        self.loaders, self.seed = loaders, seed

    def __call__(self, epoch):
        for loader in self.loaders.values():
            loader.batch_sampler.set_epoch(epoch)
        order = [task for task, loader in self.loaders.items() for _ in range(len(loader))]
        np.random.default_rng((self.seed, epoch)).shuffle(order)
        return Steps(self.loaders, order)


class Steps:
    """One epoch's steps: a batch of each task named in `order`, in that order."""

    def __init__(self, loaders, order):
        self.loaders, self.order = loaders, order

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        batches = {task: iter(loader) for task, loader in self.loaders.items()}
        for task in self.order:
            yield {task: {**next(batches[task]), "task": task}}
