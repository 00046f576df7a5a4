"""What `--list FLAG` prints: that flag's techniques, each with its options, what it does and when to use it."""

import textwrap

from extensions import ENCODER_FLAGS, GRADIENTS, HEADS, PENALTIES, POOLING, SCHEDULES, TASK_LOSSES, TASK_WEIGHTS
from extensions.technique import Range
from extensions.tuning import PARAMETER_GROUPS

# flag -> (its techniques, how they are named, what they are)
FLAGS = {
    "schedule": (SCHEDULES, "SPEC", "which tasks' batches make up a step"),
    "loss": (TASK_LOSSES, "TASK=SPEC", "a task's loss; several are added up"),
    "task_weights": (TASK_WEIGHTS, "SPEC", "how much each task's loss counts"),
    "gradient": (GRADIENTS, "SPEC", "how the tasks' gradients of one step are combined"),
    "penalty": (PENALTIES, "SPEC", "a regularizer added to the losses; repeat the flag for several"),
    "pooling": (POOLING, "[TASK=]SPEC", "how the states of a text become one encoding"),
    "heads": (HEADS, "[TASK=]SPEC", "from the encoding to the logits"),
    "norm": (ENCODER_FLAGS["norm"], "SPEC", "the encoder's normalisation"),
    "ffn": (ENCODER_FLAGS["ffn"], "SPEC", "the encoder's feed-forward"),
    "attention": (ENCODER_FLAGS["attention"], "SPEC", "the encoder's attention heads"),
    "positions": (ENCODER_FLAGS["positions"], "SPEC", "how the encoder knows positions"),
    "adapt": (ENCODER_FLAGS["adapt"], "SPEC", "what of the encoder is trained or changed; repeat the flag for several"),
    "param_groups": (PARAMETER_GROUPS, "SPEC", "which parameters share learning rate and weight decay"),
}
WIDTH = 100  # characters
NOTE = ("Options are shown with their defaults: write those that you change. Scores: MiniLM on dev, one seed each; "
        "on a tenth of the rows the base has .691, the mean of five seeds that deviate by .004.")


def spec_with_defaults(technique):
    """Return the spec of a technique with all its options at their defaults."""
    options = ",".join(f"{name}={str(default).lower() if isinstance(default, bool) else default}"
                       for name, default in technique.defaults().items())
    return f"{technique.name}:{options}" if options else technique.name


def entry(technique):
    """Return a technique's lines: its spec, what it does, when to use it, the words that options may be, the paper."""
    words = [f"{name}: {valid}" for name, valid in technique.valid.items() if not isinstance(valid, Range)]
    lines = [technique.does, f"Use: {technique.use}", *words, f"Paper: {technique.paper}"]
    wrapped = [textwrap.fill(line, WIDTH, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
               for line in lines]
    return "\n".join([spec_with_defaults(technique), *wrapped])


def listing(flag):
    """Return the text about the techniques of a flag, a key of FLAGS, with its dashes or without."""
    table, form, about = FLAGS[flag.lstrip("-").replace("-", "_")]
    head = f"--{flag.lstrip('-')} {form}: {about}"
    return "\n\n".join([head, textwrap.fill(NOTE, WIDTH), *map(entry, table.values())]) + "\n"
