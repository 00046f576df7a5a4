"""Sampling of tasks by a power of their size: small tasks come more often than their rows would have it."""

from extensions.schedules._sampling import PowerSampling
from extensions.technique import Range, Technique


class Temperature(PowerSampling):
    """p_t proportional to N_t^alpha, alpha = 1 / temperature (Raffel et al. 2020, section 3.5.2; mBERT's 0.7).

    Without the former's cap on N_t, which is for data sets far larger than the run.

    N_t are rows, as in the papers: alpha = 1 gives every row the same chance where all tasks have batches of one
    size, as `proportional` does whatever the sizes; alpha = 0 gives every task equally many batches.
    """

    def __init__(self, loaders, seed=0, epochs=1, alpha=0.7, steps=0):
        super().__init__(loaders, seed, epochs, steps)
        self.exponent = alpha

    def alpha(self, epoch):
        """Return the exponent of this epoch."""
        return self.exponent


class Sqrt(Temperature):
    """p_t proportional to the square root of N_t (alpha = 0.5; Stickland and Murray 2019)."""

    def __init__(self, loaders, seed=0, epochs=1, steps=0):
        super().__init__(loaders, seed, epochs, 0.5, steps)


TEMPERATURE = Technique(
    "temperature", Temperature, paper="Raffel et al. 2020, section 3.5.2, arxiv.org/abs/1910.10683",
    does="Draws tasks by a power of their rows: with a smaller alpha small tasks come more often.",
    use="When one task is far larger than the others. No clear effect on a tenth of the rows.",
    aka=("power", "t5", "mbert"), likely={"temperature": "alpha, 1 / temperature,", "exponent": "alpha"},
    valid={"alpha": Range(0, 1)})
SQRT = Technique(
    "sqrt", Sqrt, paper="Stickland and Murray 2019, arxiv.org/abs/1902.02671",
    does="Draws tasks by the square root of their rows (temperature with alpha=0.5).",
    use="When one task is far larger than the others. No clear effect on a tenth of the rows.",
    aka=("square-root",))
