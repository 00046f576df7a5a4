"""The steps of one epoch: which rows of which tasks, built into batches when they are asked for."""


class Steps:
    """A list of steps {task: batch}, each with batch["task"].

    `loaders` is {task: batching.Batches}, `plan` a list of {task: row indices}. Each step, or a part of it,
    can be built on its own: a resumed run starts in mid-epoch, and several processes share a step.
    """

    def __init__(self, loaders, plan):
        self.loaders, self.plan = loaders, plan

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, i):
        return {task: self.batch(task, rows, rows) for task, rows in self.plan[i].items()}

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def rows(self, i):
        """Return the number of rows of step i, all tasks together."""
        return sum(map(len, self.plan[i].values()))

    def part(self, i, k, n):
        """Return the k-th of n parts of step i, with batch["share"] the share of the step's rows that it holds.

        A part is as wide as the whole. One without rows holds the first row with a share of 0, so that all
        processes compute the same graph.
        """
        return {task: {**self.batch(task, rows[k::n] or rows[:1], rows), "share": len(rows[k::n]) / len(rows)}
                for task, rows in self.plan[i].items()}

    def batch(self, task, rows, whole):
        """Return the batch of some rows, as wide as that of all rows of their step."""
        loader = self.loaders[task]
        return {**loader.build(rows, loader.batch_sampler.width(whole)), "task": task}
