"""What a run minimises, by specs: a task's losses, their sum, what they need of the model; and the penalties."""

from extensions import PENALTIES, TASK_LOSSES
from extensions.specs import build, from_spec, name_of, technique_of


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


def read_texts(losses, penalties):
    """Tell whether a loss of {task: specs} or a penalty of these specs needs the texts, not just their encodings."""
    return (any(technique_of(spec, TASK_LOSSES).reads_texts for specs in losses.values() for spec in specs)
            or any(technique_of(spec, PENALTIES).reads_texts for spec in in_effect(penalties)))


def total_loss(specs):
    """Return the loss fn(forward) that is the sum of those named."""
    losses = [from_spec(spec, TASK_LOSSES) for spec in specs]
    return losses[0] if len(losses) == 1 else lambda forward: sum(map(forward.with_own_logits, losses))


def in_effect(specs):
    """Return the penalty specs that count: of one name the last, and after a "none" only those behind it."""
    chosen = {}
    for spec in specs or ():
        if spec == "none":
            chosen.clear()
        else:
            chosen[name_of(spec)] = spec
    return list(chosen.values())


def penalties_of(specs):
    """Return the penalties in effect of a list of specs."""
    return [build(spec, PENALTIES) for spec in in_effect(specs)]
