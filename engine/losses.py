"""A task's losses by their specs: the default, what they need of the model, and their sum."""

from extensions import TASK_LOSSES
from extensions.specs import from_spec, technique_of

LOSSES = {"sst": "ce", "para": "bce", "sts": "mse"}


def headless(specs):
    """Tell whether a task's losses train its encodings alone, and no head."""
    return not any(technique_of(spec, TASK_LOSSES).trains_head for spec in specs)


def needed(losses, what, task):
    """Return (value, loss) of what one of a task's losses needs of the model; (None, None) where none needs it."""
    for spec in losses[task]:
        needs = technique_of(spec, TASK_LOSSES).needs
        if what in needs:
            return needs[what], spec
    return None, None


def total_loss(specs):
    """Return the loss fn(model, batch) that is the sum of those named."""
    losses = [from_spec(spec, TASK_LOSSES) for spec in specs]
    return losses[0] if len(losses) == 1 else lambda model, batch: sum(loss(model, batch) for loss in losses)
