"""The heads alone: nothing of the encoder is trained (mode `last-linear-layer` of Peng, Yuan and Wang 2024)."""

from extensions.encoder import freeze


def last_linear(bert):
    """Freeze what was loaded of `bert`; what other techniques have added to it stays trainable.

    The least that tuning can cost, so what the other techniques are measured against. Unlike --option pretrain it
    leaves the encoder's dropout on in training.
    """
    freeze(bert)


last_linear.freezes = True  # what was loaded: its default learning rate is that of a frozen encoder
