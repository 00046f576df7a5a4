"""What a technique says of itself: one record, made in its own file, read by the command line, --list and messages."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Range(NamedTuple):
    """The numbers that an option may be: from `least` to `most`, above `above` and below `below`."""

    least: float = 0
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def problem(self, value):
        """Return what is wrong with a number, or None."""
        for right, bound in ((value >= self.least, f"at least {self.least}"),
                             (value > self.above, f"above {self.above}"), (value <= self.most, f"at most {self.most}"), (value < self.below, f"below {self.below}")):
            if not right:
                return f"must be {bound}"
        return None


class OneOf(NamedTuple):
    """The words that an option may be."""

    words: tuple

    def problem(self, value):
        """Return what is wrong with a word, or None."""
        return None if value in self.words else f"must be one of {', '.join(self.words)}"


class Joined(NamedTuple):
    """Words joined by +, as in query+value, or a word that stands `alone`."""

    words: tuple
    alone: tuple = ()

    def problem(self, value):
        """Return what is wrong with a value, or None."""
        if value in self.alone or all(word in self.words for word in value.split("+")):
            return None
        others = f"{' or '.join(self.alone)}, or " if self.alone else ""
        return f"must be {others}some of {', '.join(self.words)}, joined by +"


class Layers(NamedTuple):
    """The layers that an option names: one of `others`, first-N, mid-N or last-N."""

    others: tuple = ("all",)

    def problem(self, value):
        """Return what is wrong with a value, or None. Whether there are N layers shows when the encoder is loaded."""
        if value in self.others or re.fullmatch(r"(first|mid|last)-[1-9]\d*", value):
            return None
        return f"must be {', '.join(self.others)}, first-N, mid-N or last-N"


@dataclass(frozen=True)
class Technique:
    """One technique: its name in a spec, the function or class behind it, and all that others must know of it.

    A trait that does not exist is a TypeError here, not a silent default elsewhere. `valid` says what each option may
    be, beside having the kind of its default; `only_with`, {key: "OTHER=VALUE" or "OTHER"}, which options mean nothing
    unless another has that value, or any but "none" and 0; `check(**options)` raises ValueError for options that
    contradict each other. None of them needs a model: all are looked at when the command line is read.
    """

    name: str
    make: Callable  # what the folder's __init__.py describes
    does: str  # one line for --list
    use: str  # one line: when to try it
    paper: str = ""
    valid: Mapping = field(default_factory=dict)  # {option: Range, OneOf, Joined or Layers}
    only_with: Mapping = field(default_factory=dict)
    check: Callable | None = None
    likely: Mapping = field(default_factory=dict)  # {what people call an option elsewhere: its name here}

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
    shared: bool = False  # one trunk for several tasks
    # Schedules, gradients, task weights
    joint: Callable | None = None  # fn(**options) -> whether a step has batches of several tasks
    per_task: bool = False  # combines the tasks' gradients
    needed_epochs: int = 1  # before it does anything
