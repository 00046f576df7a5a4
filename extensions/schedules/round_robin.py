"""Round-robin: one batch of each task a step, or the tasks one after another in a fixed order."""

from extensions.schedules._sampling import Rounds, named_tasks
from extensions.schedules._steps import Steps
from files.errors import UserError


class RoundRobin(Rounds):
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
            self.resize({largest: batch_size})
        n = self.lengths[largest]
        self.resize({task: max(1, round(self.sizes[task] / n)) for task in self.loaders.keys() - {largest}})
        return n

    def __call__(self, epoch):
        rounds = self.together(epoch)
        return Steps(self.loaders, [{task: one[task]} for one in rounds for task in self.order] or rounds)
