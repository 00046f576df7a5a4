"""What a run minimises, by specs: a task's losses, their sum, what they need of the model; and the penalties."""

from extensions import PENALTIES, TASK_LOSSES
from extensions.specs import from_spec, made
from tasks import COURSE_TASKS, TASKS

LOSSES = {task: TASKS[task].loss for task in COURSE_TASKS}


def trait(spec, table, name, default):
    """Return a trait of the technique that a spec names in a table."""
    return getattr(table[spec.partition(":")[0]], name, default)


def traits(spec, name, default):
    """Return a trait of the loss that a spec names: which tasks it is for, what it needs of the model."""
    return trait(spec, TASK_LOSSES, name, default)


def headless(specs):
    """Tell whether a task's losses train its encodings alone, and no head."""
    return not any(traits(spec, "trains_head", True) for spec in specs)


def needed(losses, what, task):
    """Return (value, loss) of what one of a task's losses needs of the model; (None, None) where none needs it."""
    for spec in losses[task]:
        if what in traits(spec, "needs", {}):
            return traits(spec, "needs", {})[what], spec
    return None, None


def read_texts(losses, penalties):
    """Tell whether a loss of {task: specs} or a penalty of these specs needs the texts, not just their encodings."""
    return (any(trait(spec, TASK_LOSSES, "reads_texts", False) for specs in losses.values() for spec in specs)
            or any(trait(spec, PENALTIES, "reads_texts", False) for spec in in_effect(penalties)))


def total_loss(specs):
    """Return the loss fn(forward) that is the sum of those named."""
    losses = [from_spec(spec, TASK_LOSSES) for spec in specs]
    return losses[0] if len(losses) == 1 else lambda forward: sum(map(forward.with_own_logits, losses))


def in_effect(specs):
    """Return the penalty specs that count: of one name the last, and after a "none" only those behind it."""
    chosen = {}
    for spec in specs:
        if spec == "none":
            chosen.clear()
        else:
            chosen[spec.partition(":")[0]] = spec
    return list(chosen.values())


def penalties_of(specs):
    """Return the penalties that a list of specs names; of one name the last counts, "none" takes back all before."""
    return [made(spec, PENALTIES) for spec in in_effect(specs)]
