"""What the flags of training several tasks, resolved by _choices.py, cannot mean together; what does little here."""

from engine import distributed
from engine.losses import LOSSES, headless
from extensions import GRADIENTS, HEADS, POOLING, SCHEDULES, TASK_LOSSES, TASK_WEIGHTS
from extensions.specs import complete_options, require_run, technique_of
from files.errors import UserError
from tasks import COURSE_TASKS, PAIR_TASKS

NOTHING_TO_COMBINE = ("--gradient {} combines several tasks' gradients, and every step here is of one: take "
                      "--schedule round-robin, without order=, or even")
BY_TASK = ("pooling", "heads", "loss", "pair_encoding", "pair_score", "task_batch_size")


def require_heads(args):
    """Raise UserError if a task's losses train no head: they would train nothing, the encoder being frozen."""
    for task in args.tasks:
        if headless(args.loss[task]):
            raise UserError(f"--loss {task}={args.loss[task][0]} trains the encoder alone, which --option pretrain or "
                            f"--adapt freezes: add a loss that trains a head, such as {task}={LOSSES[task]}")


def check_shared_head(args):
    """Raise UserError if a head with a shared trunk has no equal to share it with."""
    heads = [args.heads[task] for task in PAIR_TASKS]
    if any(technique_of(spec, HEADS).shared for spec in heads):
        same = all(len({choice[task] for task in PAIR_TASKS}) == 1
                   for choice in (args.heads, args.pair_encoding, args.pair_score))
        cosine = args.pair_encoding["para"] == "bi" and args.pair_score["para"] == "cosine"
        if not same or cosine or not set(PAIR_TASKS) <= set(args.tasks):
            raise UserError(f"--heads para={heads[0]} sts={heads[1]}: a shared trunk needs both tasks, with equal "
                            "heads over equal encodings, and no cosine in place of a head")


def check_clashing_losses(args):
    """Raise UserError for losses of one task of which one cannot read the other's outputs."""
    for task in args.tasks:
        for spec in args.loss[task]:
            outputs = technique_of(spec, TASK_LOSSES).not_with
            clash = [other for other in args.loss[task]
                     if technique_of(other, TASK_LOSSES).needs.get("output") in outputs]
            if clash:
                raise UserError(f"--loss {task}={spec}: not with {task}={clash[0]}, whose outputs are "
                                "log-probabilities; leave one of the two out")


def listed(given):
    """Return what a flag was given, one word, several or none, as a list."""
    return [given] if isinstance(given, str) else given or []


def contradictions(args):
    """Return what cannot be meant together in the flags of multitask_classifier.py, a line each."""
    given, problems = args.given, []
    for spec in listed(given.get("pair_score")):
        task = spec[: spec.rfind("=") + 1]  # "para=", or "" for both
        encodings = [args.pair_encoding[each] for each in PAIR_TASKS if task in ("", f"{each}=")]
        if "bi" not in encodings and (not task or task[:-1] in args.tasks):
            problems.append(f"--pair_score {spec} compares two encodings, and --pair_encoding {task}cross makes one of "
                            f"a pair: add --pair_encoding {task}bi, or leave it out")
    if args.per_task_epochs and not args.run_dir:
        problems.append("--per_task_epochs needs a folder for the tasks' models: name a --run_dir too")
    if len(given.get("tasks", ())) > len(args.tasks):
        problems.append(f"--tasks {' '.join(given['tasks'])}: name each task once")
    pairs = [task for task in PAIR_TASKS if task in args.tasks]
    problems += [f"--{flag} {spec} is for pairs, and there are none in --tasks {' '.join(args.tasks)}: leave it out"
                 for flag in ("pair_encoding", "pair_score", "pair_order") if not pairs
                 for spec in listed(given.get(flag)) if "=" not in spec]
    begins = not args.resume  # runs with what follows have been begun, and their flags cannot be taken back
    if begins and args.option == "pretrain" and not args.adapt:
        problems += [f"--loss {task}={spec} trains the encoder alone, which --option pretrain freezes: leave it out"
                     for task in args.tasks for spec in args.loss[task] if headless([spec])
                     and not technique_of(args.pooling[task], POOLING).has_weights]
    if begins and len(args.tasks) == 1 and args.task_weights != "fixed":
        problems.append(f"--task_weights {args.task_weights} weighs several tasks, and --tasks names one: leave one of "
                        "the two out")
    schedule, options = technique_of(args.schedule, SCHEDULES), complete_options(args.schedule, SCHEDULES)
    if begins and args.task_batch_size and schedule.resizes(**options):  # `even` was once begun with both
        problems.append(f"--task_batch_size: --schedule {args.schedule} sets the tasks' batch sizes itself; leave one "
                        "of the two out")
    for flag, table in (("schedule", SCHEDULES), ("task_weights", TASK_WEIGHTS)):
        try:
            require_run(getattr(args, flag), table, args.tasks, args.epochs)
        except ValueError as error:
            problems.append(f"--{flag} {error}")
    if technique_of(args.gradient, GRADIENTS).per_task:
        if len(args.tasks) == 1:
            problems.append(f"--gradient {args.gradient} combines several tasks' gradients, and --tasks names one: "
                            "leave one of the two out")
        elif not schedule.joint(**options):
            problems.append(NOTHING_TO_COMBINE.format(args.gradient))
    problems += [f"--heads {spec}: the cosine takes the place of that head; leave one of the two out"
                 for spec in given.get("heads", ()) for task in pairs if spec.startswith(f"{task}=")
                 and args.pair_encoding[task] == "bi" and args.pair_score[task] == "cosine"]
    for task in COURSE_TASKS:
        if task not in args.tasks:
            idle = [f"--{name}" for name in given if name.startswith(f"{task}_")]
            idle += [f"--{name} {spec}" for name in BY_TASK for spec in listed(given.get(name))
                     if spec.startswith(f"{task}=")]
            problems += [f"{flag} is for {task}, which is not among --tasks {' '.join(args.tasks)}: leave one of the "
                         "two out" for flag in idle]
    return problems


def note_weak_choices(args, loaders):
    """Print which losses and weights do less in this run over {task: loader} than one might think."""
    parts = args.accumulate * distributed.world_size()
    for task, loader in loaders.items():
        comparing = [spec for spec in args.loss[task] if technique_of(spec, TASK_LOSSES).compares_rows]
        if comparing and parts > 1:
            print(f"note: {task}={comparing[0]} compares the rows of one of {parts} parts of a step, about "
                  f"{loader.batch_sampler.batch_size / parts:g}")
    needed_epochs = technique_of(args.task_weights, TASK_WEIGHTS).needed_epochs
    if args.epochs < needed_epochs:
        print(f"note: --task_weights {args.task_weights} leaves all tasks alike for the first {needed_epochs - 1} "
              f"epochs, and this run has {args.epochs}")
