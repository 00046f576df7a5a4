"""Stages: some tasks train alone at first, or some join later."""

from extensions.schedules._sampling import Schedule
from extensions.technique import Joined, Technique, words_of
from tasks import TASKS


def tasks_in(epoch, tasks, first, first_epochs, delay, delay_epochs):
    """Return which of the tasks train in an epoch (from 0)."""
    begun = tasks if epoch >= first_epochs or first == "none" else words_of(first)
    return [task for task in begun if epoch >= delay_epochs or task not in words_of(delay)]


class Staged(Schedule):
    """Train only the tasks `first` for `first_epochs` epochs, then all; those of `delay` begin after `delay_epochs`.

    `first=para` is Quora first, the largest task; `first=none,delay=sst,delay_epochs=10` is the delayed start of Peng
    et al. 2024. Several tasks are joined: `first=para+sts`. Within an epoch every batch of the tasks that train comes
    once, in random order, as with `proportional`.
    """

    def __init__(self, loaders, seed=0, epochs=1, first="para", first_epochs=1, delay="none", delay_epochs=1):
        super().__init__(loaders, seed, epochs)
        self.options = {"first": first, "first_epochs": first_epochs, "delay": delay, "delay_epochs": delay_epochs}

    def tasks(self, epoch):
        """Return the tasks that train in this epoch (from 0)."""
        return tasks_in(epoch, self.loaders, **self.options)

    def counts(self, epoch):
        """Return {task: its number of batches in this epoch}."""
        tasks = self.tasks(epoch)
        return {task: length if task in tasks else 0 for task, length in self.lengths.items()}


def require_steps_and_tasks(tasks, epochs, **options):
    """Raise ValueError where an epoch would have no step, or a task would never be trained."""
    for option in ("first", "delay"):
        absent = [task for task in words_of(options[option]) if task not in tasks]
        if absent:
            raise ValueError(f"{option}={options[option]}: {absent[0]} is not among the tasks {', '.join(tasks)}")
    trained = [tasks_in(epoch, tasks, **options) for epoch in range(epochs)]
    if [] in trained:
        raise ValueError(f"no task would train in epoch {trained.index([]) + 1}: first={options['first']} and "
                         f"delay={options['delay']} leave none over")
    never = [task for task in tasks if task not in trained[-1]]
    if never:
        raise ValueError(f"{', '.join(never)} would never be trained in {epochs} epochs: give more --epochs, or a "
                         "smaller first_epochs or delay_epochs")


STAGED = Technique(
    "staged", Staged, paper="Le and Lin 2024; Peng, Yuan and Wang 2024",
    does="Some tasks train alone at first, or some join later.",
    use="With many epochs. It hurt with three, on a tenth of the rows (.676 and .680, base .691).",
    aka=("curriculum", "sequential", "stages", "delayed"), likely={"start": "first", "late": "delay"},
    valid={"first": Joined(TASKS, ("none",)), "delay": Joined(TASKS, ("none",))},
    only_with={"first_epochs": "first", "delay_epochs": "delay"}, check_run=require_steps_and_tasks)
