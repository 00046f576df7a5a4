"""The steps of one epoch: which rows of which tasks, built into batches when they are asked for."""

from typing import NamedTuple


class Part(NamedTuple):
    """A task's rows of a step, or a part of them: several processes, or --accumulate, split a step."""

    batch: dict
    share: float = 1.0  # of the task's rows in the step: what a loss averages over the part counts that much
    weight: float = 1.0  # the schedule's factor of the task's loss


class Steps:
    """A list of steps {task: Part}.

    `loaders` is {task: Batches}, `plan` a list of {task: row indices}. Each step, or a part of it,
    can be built on its own: a resumed run starts in mid-epoch, and several processes share a step. A part's weight is
    `weights[task]`, 1.0 if there is none.
    """

    def __init__(self, loaders, plan, weights=None):
        self.loaders, self.plan, self.weights = loaders, plan, weights or {}

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, i):
        return {task: self.build(task, rows, i, 1.0) for task, rows in self.plan[i].items()}

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def rows(self, i):
        """Return the number of rows of step i, all tasks together."""
        return sum(map(len, self.plan[i].values()))

    def part(self, i, k, n):
        """Return the k-th of n parts of step i, {task: Part}.

        A part is as wide as the whole. One without rows holds the first row with a share of 0, so that all
        processes compute the same graph.
        """
        return {task: self.build(task, rows[k::n] or rows[:1], i, len(rows[k::n]) / len(rows))
                for task, rows in self.plan[i].items()}

    def build(self, task, rows, i, share):
        """Return the Part of some of the task's rows in step i, as wide as that of all of them."""
        loader, step = self.loaders[task], self.plan[i]
        batch = loader.build(rows, loader.batch_sampler.width(step[task]))
        return Part(batch, share, self.weights.get(task, 1.0))
