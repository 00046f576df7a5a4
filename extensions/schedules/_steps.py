"""The steps of one epoch: which rows of which tasks, built into batches when they are asked for."""


class Steps:
    """A list of steps {task: batch}, each with batch["task"] and batch["weight"].

    `loaders` is {task: Batches}, `plan` a list of {task: row indices}. Each step, or a part of it,
    can be built on its own: a resumed run starts in mid-epoch, and several processes share a step. The weight is
    `weights[task]`, 1.0 if there is none, a factor of the task's loss.
    """

    def __init__(self, loaders, plan, weights=None):
        self.loaders, self.plan, self.weights = loaders, plan, weights or {}

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, i):
        return {task: self.batch(task, rows, i) for task, rows in self.plan[i].items()}

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def rows(self, i):
        """Return the number of rows of step i, all tasks together."""
        return sum(map(len, self.plan[i].values()))

    def part(self, i, k, n):
        """Return the k-th of n parts of step i, with batch["share"] the share of the task's rows that it holds.

        A part is as wide as the whole. One without rows holds the first row with a share of 0, so that all
        processes compute the same graph.
        """
        return {task: {**self.batch(task, rows[k::n] or rows[:1], i), "share": len(rows[k::n]) / len(rows)}
                for task, rows in self.plan[i].items()}

    def batch(self, task, rows, i):
        """Return the batch of some of the task's rows in step i, as wide as that of all of them."""
        loader, step = self.loaders[task], self.plan[i]
        return {**loader.build(rows, loader.batch_sampler.width(step[task])), "task": task,
                "weight": self.weights.get(task, 1.0)}
