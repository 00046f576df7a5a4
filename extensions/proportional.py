"""Proportional sampling: every batch of every task once an epoch, in random order."""

import numpy as np

from extensions._steps import Steps


class Proportional:
    """Draw tasks with probability proportional to their remaining batches (Sanh et al. 2019, section 3.3).

    `loaders` is {task: batching.Batches}; `schedule(epoch)` returns the epoch's Steps, each a batch of one
    task. The order is a function of seed and epoch alone.
    """

    def __init__(self, loaders, seed=0):
        self.loaders, self.seed = loaders, seed

    def __call__(self, epoch):
        plan = [{task: rows} for task, loader in self.loaders.items() for rows in loader.batch_sampler.batches(epoch)]
        order = np.random.default_rng((self.seed, epoch)).permutation(len(plan))
        return Steps(self.loaders, [plan[i] for i in order])
