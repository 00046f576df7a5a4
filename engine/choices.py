"""The technique flags of training several tasks: what may be typed, and what it means for each task."""

import argparse
import os
import re
from pathlib import Path

from engine.checks import listed
from engine.losses import headless, needed
from engine.model_config import PAIR_ENCODINGS, PAIR_SCORES
from engine.parser import number, path_name, rows_or_share, spec_of
from extensions import DROPOUT_SITES, GRADIENTS, HEADS, POOLING, SCHEDULES, TASK_LOSSES, TASK_WEIGHTS
from extensions.specs import build, from_spec, require_effect, technique_of
from files.errors import UserError
from tasks import COURSE_TASKS, PREDICTED, SPLITS, TASKS, in_order, with_course_tasks

ROOT = Path(__file__).resolve().parent.parent
JOINT_SCHEDULE = "round-robin:end=longest"  # what techniques that need several tasks in a step take by default


def with_demo(parser, argv):
    """Return a command line, files of flags included; --demo stands for flags of its own, which typed ones override.

    The recipe is minilm.args unless another is named, with smaller steps: there are a few hundred rows.
    """
    words = parser.expand(argv)
    if "--demo" not in words:
        return words
    recipe = [] if any(word.startswith("@") for word in argv) else [
        *parser.expand([f"@{ROOT / 'recipes' / 'minilm.args'}"]), "--epochs", "4", "--batch_size", "16"]
    return [*recipe, "--pretrained", "minilm", "--data_dir", str(ROOT / "data" / "sample"),
            "--predictions_dir", os.path.join("predictions", "demo"), "--run_dir", os.path.join("runs", "demo"), *words]


def name_files(args):
    """Name in `args` the data and prediction files of all tasks that no flag has named."""
    for name, task in TASKS.items():
        for split in SPLITS:
            path = task.data_file(args.data_dir, split)
            setattr(args, f"{name}_{split}", getattr(args, f"{name}_{split}") or path)
        for split in PREDICTED:
            path = task.prediction_file(args.predictions_dir, split)
            setattr(args, f"{name}_{split}_out", getattr(args, f"{name}_{split}_out") or path)


def add_task_arguments(parser):
    """Add the flags that say which tasks are trained, and where their files are."""
    group = parser.add_argument_group("files of the tasks")
    for name, task in TASKS.items():
        for split in SPLITS:
            group.add_argument(f"--{name}_{split}", type=path_name, metavar="FILE",
                               help=f"the {task.form.name} {split} file (default: {task.data_file('DATA_DIR', split)})")
        for split in PREDICTED:
            path = task.prediction_file("PREDICTIONS_DIR", split)
            group.add_argument(f"--{name}_{split}_out", type=path_name, metavar="FILE",
                               help=f"where the {task.form.name} {split} predictions go (default: {path})")
    add = parser.add_argument_group("tasks, data and predictions").add_argument
    add("--demo", action="store_true", help="train the packaged MiniLM on data/sample, a minute or two on a CPU")
    add("--tasks", nargs="+", choices=tuple(TASKS), default=list(COURSE_TASKS), metavar="TASK",
        help=f"what to train and predict, of {', '.join(TASKS)} (default: {' '.join(COURSE_TASKS)})")
    add("--data_dir", type=path_name, default="data", metavar="DIR", help="folder of the data files")
    add("--predictions_dir", type=path_name, default="predictions", metavar="DIR",
        help="folder of the prediction files")
    add("--train_rows", type=rows_or_share, metavar="N|P%",
        help="train on N random rows of each task, or on P percent of them")
    add("--init", metavar="FILE", help="begin with the weights of a checkpoint of an equal model")
    add("--per_task_epochs", type=number(int, 1), metavar="N",
        help="afterwards fine-tune a copy of the model for each task for N epochs, and predict with it")


def add_technique_arguments(parser):
    """Add the flags that name techniques of training several tasks."""
    add = parser.add_argument_group("extensions/losses: the tasks' losses").add_argument
    add("--loss", type=task_spec("loss", TASK_LOSSES, True), nargs="+", action="extend", metavar="TASK=SPEC",
        help=f"a task's loss: {', '.join(TASK_LOSSES)}. Several of one task are added up (default: "
        f"{', '.join(f'{name}={task.loss}' for name, task in TASKS.items())})")
    add = parser.add_argument_group("extensions/schedules, task_weights, gradients: several tasks").add_argument
    add("--schedule", type=spec_of(SCHEDULES), metavar="SPEC",
        help=f"which tasks' batches make up a step: {', '.join(SCHEDULES)} (default: proportional; {JOINT_SCHEDULE} "
        "where --gradient or --task_weights need several tasks in a step)")
    add("--task_batch_size", nargs="+", action="extend", metavar="TASK=N", help="rows of a step for one task")
    add("--task_weights", type=spec_of(TASK_WEIGHTS), default="fixed", metavar="SPEC",
        help=f"how much each task's loss counts: {', '.join(TASK_WEIGHTS)}")
    add("--gradient", type=spec_of(GRADIENTS), default="sum", metavar="SPEC",
        help=f"how the tasks' gradients of a step are combined: {', '.join(GRADIENTS)}")
    add = parser.add_argument_group("extensions/heads: from hidden states to logits").add_argument
    add("--pooling", type=task_spec("pooling", POOLING), nargs="+", action="extend", metavar="[TASK=]SPEC",
        help=f"the encoding of a text: {', '.join(POOLING)}; for all tasks or for one (default: cls)")
    add("--heads", type=task_spec("heads", HEADS), nargs="+", action="extend", metavar="[TASK=]SPEC",
        help=f"from the encoding to the logits: {', '.join(HEADS)} (default: mlp)")
    add("--pair_encoding", nargs="+", action="extend", metavar="[TASK=]NAME",
        help="cross: a pair is one sequence (default); bi: each text is encoded apart, then the two are compared")
    add("--pair_score", nargs="+", action="extend", metavar="[TASK=]NAME",
        help="how bi compares: concat, a head over u, v and |u - v| (default); product, with u v too; cosine")
    add("--pair_order", choices=("given", "both"), default="given", metavar="ORDER",
        help="both: predict the mean over both orders of a pair's texts, for twice the time; given: one order")
    add = parser.add_argument_group("extensions/architecture/dropout_sites").add_argument
    add("--dropout", type=site_of, action="append", metavar="SITE=P",
        help=f"dropout at one place, in place of the two dropout flags: {', '.join(DROPOUT_SITES)}")


def task_spec(flag, table, required=False):
    """Return an argparse type: the text of a `TASK=SPEC`; UserError for what is none, or of which a part does nothing.

    What a checkpoint or an earlier command line says is only `checked`.
    """

    def check(text):
        _, spec = split_task(flag, text, required)
        try:
            require_effect(spec, table)
        except ValueError as error:
            raise UserError(f"--{flag} {error}") from error
        return text

    return check


def site_of(text):
    """Return (site, probability) of `SITE=P`; for argparse."""
    site, _, p = text.partition("=")
    if site not in DROPOUT_SITES:
        raise argparse.ArgumentTypeError(f"{text}: give SITE=P with SITE one of {', '.join(DROPOUT_SITES)}")
    return site, number(float, 0, below=1)(p)


def resolve_techniques(args):
    """Replace the lists that were typed in `args` by dicts by task, {task: spec}, and add what the losses ask for.

    Raises UserError for specs that are wrong, or that contradict what a loss needs.
    """
    args.tasks = in_order(args.tasks)
    args.model_tasks = names = with_course_tasks(args.tasks)
    args.dropout = dict(args.dropout or [])
    args.loss = losses_by_task(args.loss, names)
    args.pooling = specs_by_task("pooling", args.pooling, POOLING, "cls", names)
    args.heads = specs_by_task("heads", args.heads, HEADS, "mlp", names)
    args.pair_encoding = pair_choices("pair_encoding", args.pair_encoding, PAIR_ENCODINGS, args.loss, "cross")
    args.pair_score = pair_choices("pair_score", args.pair_score, PAIR_SCORES, args.loss, "concat", "cosine")
    args.outputs = {task: output for task in names if (output := needed(args.loss, "output", task)[0])}
    args.task_batch_size = batch_sizes(args.task_batch_size)
    args.joint_for = joint_flag(args.gradient, args.task_weights, args.tasks) if args.schedule is None else None
    if args.schedule is None:
        args.schedule = JOINT_SCHEDULE if args.joint_for else "proportional"


def joint_flag(gradient, task_weights, tasks):
    """Return the flag, of these two, that does something only where a step has several tasks' batches, or None."""
    if len(tasks) > 1 and technique_of(gradient, GRADIENTS).per_task:
        return f"--gradient {gradient}"
    weighs = len(tasks) > 1 and not build(task_weights, TASK_WEIGHTS, tasks).alike
    return f"--task_weights {task_weights}" if weighs else None


def batch_sizes(specs):
    """Return {task: rows} from specs such as ["para=64"]."""
    sizes = {}
    for spec in specs or []:
        task, _, rows = spec.partition("=")
        if task not in TASKS or not re.fullmatch("[0-9]{1,6}", rows) or int(rows) < 1:
            raise UserError(f"--task_batch_size {spec}: give TASK=N with TASK one of {', '.join(TASKS)} and N from 1 "
                            "to 999999")
        sizes[task] = int(rows)
    return sizes


def split_task(flag, spec, required=False, tasks=TASKS):
    """Return (task, rest) of `TASK=SPEC`, or ("", spec) of a SPEC for all tasks."""
    task, equals, rest = spec.partition("=")
    named = equals and ":" not in task  # an equals sign within the options belongs to them
    if (named and task not in tasks) or (required and not named):
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


def specs_by_task(flag, specs, table, default, names):
    """Return {task: spec} over `names` from specs such as ["mean", "sst=pooler"]; later ones win."""
    chosen = dict.fromkeys(names, default)
    for spec in specs or []:
        task, choice = split_task(flag, spec)
        chosen.update(dict.fromkeys([task] if task else names, checked(flag, choice, table)))
    return {task: chosen[task] for task in names}


def losses_by_task(specs, names):
    """Return {task: [specs of its losses]} over `names`, from specs such as ["para=bce", "para=mnrl:weight=0.1"].

    The losses named for a task take the place of its default and are added up. Raises UserError for a loss that is not
    for the task.
    """
    named = {}
    for spec in specs or []:
        task, loss = split_task("loss", spec, required=True)
        named.setdefault(task, []).append(checked("loss", loss, TASK_LOSSES))
        technique = technique_of(loss, TASK_LOSSES)
        if not technique.fits(TASKS[task]):
            fitting = [name for name in TASKS if technique.fits(TASKS[name])]
            raise UserError(f"--loss {spec}: {technique.name} is a loss for {' and '.join(fitting)}")
    for task, losses in named.items():
        if headless(losses) and (TASKS[task].outputs > 1 or not TASKS[task].is_pair):
            raise UserError(f"--loss {task}={losses[0]} trains no classifier: add one that does, such as "
                            f"{task}={TASKS[task].loss}")
    return {task: named.get(task, [TASKS[task].loss]) for task in names}


def pair_choices(flag, specs, choices, losses, default, of_headless=None):
    """Return {task: how its pairs are encoded, or scored} from specs such as ["cross", "sts=bi"]; later ones win.

    A task of which they say nothing has what its losses need, else the default; where its losses train no head,
    `of_headless` is the default: the cosine needs none. Raises UserError for what is none of `choices`, and where what
    was typed and what a loss needs contradict each other.
    """
    pairs = [task for task in TASKS if TASKS[task].is_pair]
    typed, chosen = {}, {}
    for spec in listed(specs):
        task, choice = split_task(flag, spec, tasks=pairs)
        if choice not in choices:
            raise UserError(f"--{flag} {spec}: give {' or '.join(choices)}")
        typed.update(dict.fromkeys([task] if task else pairs, (choice, spec)))
    for task in (task for task in losses if TASKS[task].is_pair):
        need, loss = needed(losses, flag, task)
        choice, spec = typed.get(task, (None, None))
        if choice and need and choice != need:
            raise UserError(f"--{flag} {spec}: --loss {task}={loss} needs {need}; leave one of the two out")
        if choice and of_headless and choice != of_headless and headless(losses[task]):
            raise UserError(f"--{flag} {spec}: --loss {task}={losses[task][0]} trains no head, which that would need; "
                            f"leave it out, or add a loss that trains one, such as {task}={TASKS[task].loss}")
        chosen[task] = choice or need or (headless(losses[task]) and of_headless) or default
    return chosen
