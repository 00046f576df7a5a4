"""Annealed sampling: by the tasks' sizes at first, nearly evenly at the end (Stickland and Murray 2019)."""

from extensions.schedules._sampling import PowerSampling
from extensions.technique import Technique


class Annealed(PowerSampling):
    """p_t proportional to N_t^alpha with alpha = 1 - 0.8 (e - 1) / (E - 1) in epoch e = 1 ... E.

    https://arxiv.org/abs/1902.02671: towards the end of training the tasks are trained more equally,
    which keeps them from interfering. alpha = 1 where E = 1. The paper's epochs have 2,400 steps (`steps=2400`);
    here an epoch has by default as many as all tasks together have batches.
    """

    def alpha(self, epoch):
        """Return the exponent of this epoch (from 0)."""
        return 1 - 0.8 * min(1.0, epoch / max(1, self.epochs - 1))


ANNEALED = Technique(
    "annealed", Annealed, paper="Stickland and Murray 2019, arxiv.org/abs/1902.02671",
    does="Draws tasks by their sizes at first, nearly evenly in the last epoch.",
    use="With pals, as in its paper. No clear effect on a tenth of the rows.", aka=("annealing", "anneal"))
