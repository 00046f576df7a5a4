"""Proportional sampling: every batch of every task once an epoch, in random order."""

from extensions.schedules._sampling import Schedule
from extensions.technique import Technique


class Proportional(Schedule):
    """Draw tasks with probability proportional to their remaining batches (Sanh et al. 2019, section 3.3)."""

    def counts(self, epoch):
        """Return {task: its number of batches in this epoch}."""
        return dict(self.lengths)


PROPORTIONAL = Technique(
    "proportional", Proportional, paper="Sanh et al. 2019, section 3.3, arxiv.org/abs/1811.06031",
    does="Every batch of every task once an epoch, one task a step, in random order.",
    use="The default.", aka=("random", "shuffle", "mixed"))
