"""The heads alone: nothing of the encoder is trained (mode `last-linear-layer` of Peng, Yuan and Wang 2024)."""

from extensions.encoder import freeze
from extensions.technique import Technique


def last_linear(bert):
    """Freeze what was loaded of `bert`; what other techniques have added to it stays trainable.

    The least that tuning can cost, so what the other techniques are measured against. Unlike --option pretrain it
    leaves the encoder's dropout on in training.
    """
    freeze(bert)


LAST_LINEAR = Technique(
    "last-linear", last_linear, paper="Peng, Yuan and Wang 2024",
    does="Freezes the encoder; the heads alone are trained.",
    use="As the least that tuning can do, to compare with: .560 on a tenth of the rows, base .691.",
    aka=("linear-probe", "frozen", "heads-only", "head", "last-linear-layer"), freezes=True)
