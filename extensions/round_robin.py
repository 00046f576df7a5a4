"""Round-robin: one batch of each task a step, or the tasks one after another in a fixed order."""

from extensions._sampling import Schedule, named_tasks, resized
from extensions._steps import Steps
from files import UserError


class RoundRobin(Schedule):
    """Take one batch of every task a step (Bi et al. 2022; Cai 2023); the epoch ends with

    `end=shortest`   the task with the fewest batches; the others go on from there in the next epoch,
    `end=longest`    the task with the most; the others begin anew meanwhile, in a new order,
    `end=balanced`   all tasks together, about: the task with the most rows has batches of `batch_size` rows (Cai 2023:
                     Quora 64; 0 for the size that its loader has), n of them; any other has batches of N_t / n rows,
                     rounded (Cai: 4 and 3 rows for SST and STS). What rounding leaves over goes on in the next epoch.

    With `order=para+sts+sst`, which names all tasks, a step is a single task and the tasks take turns in that order
    (this one did best for Peng et al. 2024). Without it, a step's gradient is that of the sum of the tasks' losses,
    in which their order means nothing.
    """

    only_with = {"batch_size": "end=balanced"}

    @classmethod
    def joint_with(cls, order="none", **options):
        """Tell what `joint` is with these options of a spec."""
        return order == "none"

    def __init__(self, loaders, seed=0, epochs=1, end="shortest", order="none", batch_size=64):
        super().__init__(loaders, seed, epochs)
        if end not in ("shortest", "longest", "balanced"):
            raise UserError(f"--schedule round-robin:end={end}: choose shortest, longest or balanced")
        self.order = named_tasks(order, self.loaders, "--schedule round-robin:order")
        if self.order and sorted(self.order) != sorted(self.loaders):
            raise UserError(f"--schedule round-robin:order={order}: name each of {', '.join(self.loaders)} once")
        self.rounds = (min if end == "shortest" else max)(self.lengths.values(), default=0)
        self.joint, self.resizes = self.joint_with(order=order), end == "balanced"
        if end == "balanced" and self.loaders:
            self.rounds = self.balance(batch_size)

    def balance(self, batch_size):
        """Give every task about as many batches as the largest has with `batch_size` rows each; return that number."""
        largest = max(self.sizes, key=self.sizes.get)
        if batch_size:
            self.loaders[largest] = resized(self.loaders[largest], batch_size)
        n = len(self.loaders[largest])
        for task in self.loaders.keys() - {largest}:
            self.loaders[task] = resized(self.loaders[task], max(1, round(self.sizes[task] / n)))
        self.lengths = {task: len(loader) for task, loader in self.loaders.items()}
        return n

    def counts(self, epoch):
        """Return {task: its number of batches in this epoch}."""
        return dict.fromkeys(self.loaders, self.rounds)

    def __call__(self, epoch):
        tasks = self.order or list(self.loaders)
        rounds = [dict(zip(tasks, rows, strict=True))
                  for rows in zip(*(self.batches(task, epoch) for task in tasks), strict=True)]
        if self.order:
            rounds = [{task: rows} for one in rounds for task, rows in one.items()]
        return Steps(self.loaders, rounds)
