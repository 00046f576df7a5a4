"""A task's losses by their specs: the default, what they need of the model, and their sum."""

from extensions import TASK_LOSSES
from extensions.specs import from_spec

LOSSES = {"sst": "ce", "para": "bce", "sts": "mse"}


def traits(spec, name, default):
    """Return an attribute of the loss that a spec names: which tasks it is for, what it needs of the model."""
    return getattr(TASK_LOSSES[spec.partition(":")[0]], name, default)


def headless(specs):
    """Tell whether a task's losses train its encodings alone, and no head."""
    return not any(traits(spec, "trains_head", True) for spec in specs)


def needed(losses, what, task):
    """Return (value, loss) of what one of a task's losses needs of the model; (None, None) where none needs it."""
    for spec in losses[task]:
        if what in traits(spec, "needs", {}):
            return traits(spec, "needs", {})[what], spec
    return None, None


def total_loss(specs):
    """Return the loss fn(model, batch) that is the sum of those named."""
    losses = [from_spec(spec, TASK_LOSSES) for spec in specs]
    return losses[0] if len(losses) == 1 else lambda model, batch: sum(loss(model, batch) for loss in losses)
