"""What a technique says of itself: one record, made in its own file, read by the command line, --list and messages."""

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tasks import TASKS

WITH_FLAGS = ("weight_decay", "seed", "epochs")  # parameters that are no options of a spec: they have flags


class Range(NamedTuple):
    """The numbers that an option may be: from `least` to `most`, above `above` and below `below`."""

    least: float = 0
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value):
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self):
        if self.most < math.inf and self.above == -math.inf:
            return f"from {self.least} to {self.most}"
        low = f"above {self.above}" if self.above > -math.inf else f"at least {self.least}"
        high = f" and at most {self.most}" if self.most < math.inf else f" and below {self.below}"
        return low if self.most == self.below else low + high


class OneOf(NamedTuple):
    """The words that an option may be."""

    words: Collection

    def __contains__(self, value):
        return value in self.words

    def __str__(self):
        return f"one of {', '.join(self.words)}"


class Joined(NamedTuple):
    """Words joined by +, as in query+value, or a word that stands `alone`. For tasks `words` is TASKS itself."""

    words: Collection
    alone: tuple = ()

    def __contains__(self, value):
        return value in self.alone or all(word in self.words for word in value.split("+"))

    def __str__(self):
        return "".join(f"{word}, or " for word in self.alone) + f"words of {', '.join(self.words)}, joined by +"


class Layers(NamedTuple):
    """The layers that an option names: one of `others`, first-N, mid-N or last-N. The encoder tells if it has N."""

    others: tuple = ("all",)

    def __contains__(self, value):
        return value in self.others or bool(re.fullmatch(r"(first|mid|last)-[1-9]\d*", value))

    def __str__(self):
        return f"{', '.join(self.others)}, first-N, mid-N or last-N"


def words_of(joined):
    """Return the words of such as para+sts, a list; [] for "none"."""
    return [] if joined == "none" else joined.split("+")


def never(**options):
    """Return False, whatever the options."""
    return False


def always(**options):
    """Return True, whatever the options."""
    return True


@dataclass(frozen=True, eq=False)
class Technique:
    """One technique: its name in a spec, the function or class behind it, and all that others must know of it.

    A field that does not exist is a TypeError here, not a silent default elsewhere. All that is said of options is
    looked at when the command line is read, without a model: `valid` (a value must be `in` its Range, OneOf, Joined or
    Layers), beside having the kind of its default; `only_with`, {option: "OTHER=VALUE" or "OTHER"}, which options mean
    nothing unless another has that value, or any but "none" and 0; `check(**options)` and `check_run(tasks, epochs,
    **options)` raise ValueError for options that contradict each other, or the run's tasks and number of epochs.
    """

    name: str
    make: Callable  # what the folder's __init__.py describes
    does: str  # one line for --list
    use: str  # one line: when to try it
    paper: str
    aka: tuple = ()  # names elsewhere, for "did you mean ...?" alone
    valid: Mapping = field(default_factory=dict)
    only_with: Mapping = field(default_factory=dict)
    check: Callable | None = None
    check_run: Callable | None = None
    likely: Mapping = field(default_factory=dict)  # {what people call an option elsewhere: its name here}
    task_option: float | None = None  # it takes an option for each task, with this default

    # Losses
    kinds: tuple = ()  # of tasks.KINDS
    pairs_only: bool = False
    needs: Mapping = field(default_factory=dict)  # {"pair_encoding", "pair_score" or "output": value} of the model
    not_with: tuple = ()  # outputs of other losses of the task that it cannot read
    trains_head: bool = True
    compares_rows: bool = False  # of a batch with each other: parts of a step change it
    # Losses and penalties
    reads_texts: bool = False  # so that a frozen encoder's features cannot stand for them
    # Changes of the encoder
    freezes: bool = False  # what was loaded: its default learning rate is that of a frozen encoder
    learning_rate: float | None = None  # by default, in place of the script's
    # Pooling and heads
    has_weights: bool = False
    needs_layers: bool = False  # the hidden states of all layers
    shared: bool = False  # one trunk for several tasks
    # Schedules, gradients, task weights
    joint: Callable = never  # fn(**options) -> whether a step has batches of several tasks
    resizes: Callable = never  # fn(**options) -> whether it sets the tasks' batch sizes itself
    per_task: bool = False  # combines the tasks' gradients
    needed_epochs: int = 1  # before it does anything

    def __call__(self, *args, **options):
        """Call what is behind it."""
        return self.make(*args, **options)

    def defaults(self):
        """Return {option: default} of what a spec may say."""
        parameters = inspect.signature(self.make).parameters.values()
        options = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in WITH_FLAGS}
        return options if self.task_option is None else {**options, **dict.fromkeys(TASKS, self.task_option)}

    def fits(self, task):
        """Tell whether a loss is for a task, an entry of TASKS."""
        return task.kind in self.kinds and (task.is_pair or not self.pairs_only)


def by_name(*techniques):
    """Return {name: technique}, in the order given."""
    return {technique.name: technique for technique in techniques}
