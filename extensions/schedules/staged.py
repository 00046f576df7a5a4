"""Stages: some tasks train alone at first, or some join later."""

from extensions.schedules._sampling import Schedule, named_tasks
from files.errors import UserError


class Staged(Schedule):
    """Train only the tasks `first` for `first_epochs` epochs, then all; those of `delay` begin after `delay_epochs`.

    `first=para` is Quora first, the largest task; `first=none,delay=sst,delay_epochs=10` is the delayed start of Peng
    et al. 2024. Several tasks are joined: `first=para+sts`. Within an epoch every batch of the tasks that train comes
    once, in random order, as with `proportional`. Raises UserError where an epoch would have no step or a task would
    never be trained.
    """

    only_with = {"first_epochs": "first", "delay_epochs": "delay"}

    def __init__(self, loaders, seed=0, epochs=1, first="para", first_epochs=1, delay="none", delay_epochs=1):
        super().__init__(loaders, seed, epochs)
        self.first = named_tasks(first, self.loaders, "--schedule staged:first") or list(self.loaders)
        self.delay = named_tasks(delay, self.loaders, "--schedule staged:delay")
        self.first_epochs, self.delay_epochs = first_epochs, delay_epochs
        for epoch in range(epochs):
            if self.loaders and not self.tasks(epoch):
                raise UserError(f"--schedule staged: no task would train in epoch {epoch}; first={first} and "
                                f"delay={delay} leave none over")
        never = [task for task in self.loaders if epochs and task not in self.tasks(epochs - 1)]
        if never:
            raise UserError(f"--schedule staged: {', '.join(never)} would never be trained in {epochs} epochs; "
                            "give more --epochs, or a smaller first_epochs or delay_epochs")

    def tasks(self, epoch):
        """Return the tasks that train in this epoch."""
        begun = self.loaders if epoch >= self.first_epochs else self.first
        return [task for task in begun if epoch >= self.delay_epochs or task not in self.delay]

    def counts(self, epoch):
        """Return {task: its number of batches in this epoch}."""
        tasks = self.tasks(epoch)
        return {task: length if task in tasks else 0 for task, length in self.lengths.items()}
