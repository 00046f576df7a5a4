"""The flags that name techniques of training several tasks: what they may say, and what that means for each task."""

import argparse
import re

from engine.arguments import number, spec_of
from engine.checks import check_clashing_losses, check_shared_head, listed, require_heads
from engine.losses import LOSSES, headless, needed
from engine.model_config import STORED_CHOICES
from extensions import GRADIENTS, HEADS, POOLING, SCHEDULES, TASK_LOSSES, TASK_WEIGHTS
from extensions.architecture.dropout_sites import SITES
from extensions.specs import from_spec, require_effect, technique_of
from files.errors import UserError
from tasks import COURSE_TASKS, PAIR_TASKS, TASKS

PAIR_ENCODINGS, PAIR_SCORES = STORED_CHOICES["pair_encoding"], STORED_CHOICES["pair_score"]


def add_technique_arguments(parser):
    """Add the flags that name techniques of training several tasks."""
    group = parser.add_argument_group("techniques (NAME[:KEY=VALUE,...]; README lists them)")
    add = group.add_argument
    add("--schedule", type=spec_of(SCHEDULES), default="proportional", metavar="SPEC",
        help=f"{', '.join(SCHEDULES)}: which tasks' batches make up a step")
    add("--task_batch_size", nargs="+", action="extend", metavar="TASK=N",
        help="rows of a step for one task, in place of --batch_size")
    add("--loss", type=task_spec("loss", TASK_LOSSES, True), nargs="+", action="extend", metavar="TASK=SPEC",
        help=f"{', '.join(TASK_LOSSES)}: a task's loss, in place of ce, bce, mse; several are added up")
    add("--task_weights", type=spec_of(TASK_WEIGHTS), default="fixed", metavar="SPEC",
        help=f"{', '.join(TASK_WEIGHTS)}: how much each task's loss counts")
    add("--gradient", type=spec_of(GRADIENTS), default="sum", metavar="SPEC",
        help=f"{', '.join(GRADIENTS)}: how the tasks' gradients of one step are combined")
    add("--pair_encoding", nargs="+", action="extend", metavar="[TASK=]NAME",
        help=f"{', '.join(PAIR_ENCODINGS)}: a pair is one sequence (default), or two, compared afterwards")
    add("--pair_score", nargs="+", action="extend", metavar="[TASK=]NAME",
        help=f"{', '.join(PAIR_SCORES)}: how bi compares, a head over (u, v, |u - v|) (default) or with u v too, or "
             "the cosine; not for a task whose pairs are one sequence")
    add("--pair_order", choices=("given", "both"), default="given",
        help="both: predictions are the mean over both orders of a pair's texts, for twice the time")
    add("--pooling", type=task_spec("pooling", POOLING), nargs="+", action="extend", metavar="[TASK=]SPEC",
        help=f"{', '.join(POOLING)}: the sentence's encoding, for all tasks or for one (default: cls)")
    add("--heads", type=task_spec("heads", HEADS), nargs="+", action="extend", metavar="[TASK=]SPEC",
        help=f"{', '.join(HEADS)}: from the encoding to the logits (default: mlp)")
    add("--dropout", type=site_of, action="append", metavar="SITE=P",
        help=f"dropout of one place, whatever the two dropout flags say: {', '.join(SITES)}")


def task_spec(flag, table, required=False):
    """Return an argparse type: the text of a `TASK=SPEC`; UserError for what is none, or of which a part does nothing.

    What a checkpoint or an earlier command line says is only `checked`.
    """

    def check(text):
        task, spec = split_task(flag, text, required)
        try:
            require_effect(spec, table)
        except ValueError as error:
            raise UserError(f"--{flag} {error}") from error
        return text

    return check


def site_of(text):
    """Return (site, probability) of `SITE=P`; for argparse."""
    site, _, p = text.partition("=")
    if site not in SITES:
        raise argparse.ArgumentTypeError(f"{text}: give SITE=P with SITE one of {', '.join(SITES)}")
    return site, number(float, 0, below=1)(p)


def resolve_techniques(args):
    """Replace the lists of specs in `args` by dicts by task, {task: spec}, and add what the losses ask for.

    Nothing happens to arguments that are resolved already. Raises UserError for specs that are wrong, or that
    contradict each other.
    """
    if isinstance(args.loss, dict):
        return
    args.dropout = dict(args.dropout or [])
    args.loss = losses_by_task(args.loss)
    args.pooling = specs_by_task("pooling", args.pooling, POOLING, "cls")
    args.heads = specs_by_task("heads", args.heads, HEADS, "mlp")
    args.pair_encoding = pair_choices("pair_encoding", args.pair_encoding, PAIR_ENCODINGS, args.loss, "cross")
    args.pair_score = pair_choices("pair_score", args.pair_score, PAIR_SCORES, args.loss, "concat", "cosine")
    if args.option == "pretrain" and not args.adapt:
        require_heads(args)
    check_clashing_losses(args)
    check_shared_head(args)
    args.outputs = {task: output for task in COURSE_TASKS if (output := needed(args.loss, "output", task)[0])}
    args.task_batch_size = parse_batch_sizes(args.task_batch_size)


def parse_batch_sizes(specs):
    """Return {task: rows} from specs such as ["para=64"]."""
    sizes = {}
    for spec in specs or []:
        task, _, rows = spec.partition("=")
        if task not in COURSE_TASKS or not re.fullmatch("[0-9]{1,6}", rows) or int(rows) < 1:
            raise UserError(f"--task_batch_size {spec}: give TASK=N with TASK one of {', '.join(COURSE_TASKS)} and N "
                            "from 1 to 999999")
        sizes[task] = int(rows)
    return sizes


def split_task(flag, spec, required=False, tasks=COURSE_TASKS):
    """Return (task, rest) of `TASK=SPEC`, or ("", spec) of a SPEC for all tasks."""
    task, equals, rest = spec.partition("=")
    named = equals and ":" not in task  # an equals sign within the options is none of ours
    if task not in tasks if named else required:
        form = "TASK=SPEC" if required else "[TASK=]SPEC"
        raise UserError(f"--{flag} {spec}: give {form} with TASK one of {', '.join(tasks)}")
    return (task, rest) if named else ("", spec)


def checked(flag, spec, table):
    """Return the spec of a technique in `table`; raise UserError for what is no such spec."""
    try:
        from_spec(spec, table)
    except ValueError as error:
        raise UserError(f"--{flag} {error}") from error
    return spec


def specs_by_task(flag, specs, table, default):
    """Return {task: spec} from specs such as ["mean", "sst=pooler"]; later ones win."""
    chosen = dict.fromkeys(COURSE_TASKS, default)
    for spec in specs or []:
        task, name = split_task(flag, spec)
        chosen.update(dict.fromkeys([task] if task else COURSE_TASKS, checked(flag, name, table)))
    return chosen


def losses_by_task(specs):
    """Return {task: [specs of its losses]} from specs such as ["para=bce", "para=mnrl:weight=0.1"].

    The losses named for a task take the place of its own and are added up. Raises UserError for a loss that is not
    for the task.
    """
    named = {}
    for spec in specs or []:
        task, name = split_task("loss", spec, required=True)
        named.setdefault(task, []).append(checked("loss", name, TASK_LOSSES))
        loss = technique_of(name, TASK_LOSSES)
        if not loss.fits(TASKS[task]):
            fitting = " and ".join(other for other in TASKS if loss.fits(TASKS[other]))
            raise UserError(f"--loss {spec}: {loss.name} is a loss for {fitting}")
    if "sst" in named and headless(named["sst"]):
        raise UserError(f"--loss sst={named['sst'][0]} trains no classifier: add one that does, such as sst=ce")
    return {task: named.get(task, [default]) for task, default in LOSSES.items()}


def pair_choices(flag, specs, choices, losses, default, of_headless=None):
    """Return {task: how its pairs are encoded, or scored} from specs such as ["cross", "sts=bi"]; later ones win.

    A task of which they say nothing has what its losses need, else the default; where its losses train no head,
    `of_headless` is the default: the cosine needs none. Raises UserError for what is none of `choices`, and where what
    is said and what a loss needs contradict each other.
    """
    said, chosen = {}, {}
    for spec in listed(specs):
        task, name = split_task(flag, spec, tasks=PAIR_TASKS)
        if name not in choices:
            raise UserError(f"--{flag} {spec}: give {' or '.join(choices)}")
        said.update(dict.fromkeys([task] if task else PAIR_TASKS, (name, spec)))
    for task in PAIR_TASKS:
        need, loss = needed(losses, flag, task)
        name, spec = said.get(task, (None, None))
        if name and need and name != need:
            raise UserError(f"--{flag} {spec}: --loss {task}={loss} needs {need}; leave one of the two out")
        if name and of_headless and name != of_headless and headless(losses[task]):
            raise UserError(f"--{flag} {spec}: --loss {task}={losses[task][0]} trains no head, which that would need; "
                            f"leave it out, or add a loss that trains one, such as {task}={LOSSES[task]}")
        chosen[task] = name or need or (headless(losses[task]) and of_headless) or default
    return chosen
