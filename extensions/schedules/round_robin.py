"""Round-robin: one batch of each task a step, or the tasks one after another in a fixed order."""

from extensions.schedules._sampling import Rounds
from extensions.schedules._steps import Steps
from extensions.technique import Joined, OneOf, Technique, words_of
from tasks import TASKS


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

    def __init__(self, loaders, seed=0, epochs=1, end="longest", order="none", batch_size=64):
        super().__init__(loaders, seed, epochs)
        self.order = [task for task in words_of(order) if task in self.loaders]
        self.rounds = (min if end == "shortest" else max)(self.lengths.values(), default=0)
        self.joint = order == "none"
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


def require_each_task_once(tasks, epochs, order, **options):
    """Raise ValueError for an order that does not name each of the tasks once."""
    if order != "none" and sorted(words_of(order)) != sorted(tasks):
        raise ValueError(f"order={order}: name each of {', '.join(tasks)} once")


ROUND_ROBIN = Technique(
    "round-robin", RoundRobin, paper="Bi et al. 2022; Cai 2023; Peng, Yuan and Wang 2024",
    does="One batch of every task a step; with order=, one task a step, in turn.",
    use="For --gradient and --task_weights. Compare runs of equal length: shortest has few updates.",
    aka=("roundrobin", "alternate", "cyclic"), likely={"stop": "end", "until": "end"},
    valid={"end": OneOf(("shortest", "longest", "balanced")), "order": Joined(TASKS, ("none",))},
    only_with={"batch_size": "end=balanced"}, check_run=require_each_task_once,
    joint=lambda order, **options: order == "none", resizes=lambda end, **options: end == "balanced")
