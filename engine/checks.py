"""What flags cannot mean together, and what does less in a run than one might think."""

import os
from collections import Counter
from pathlib import Path

import torch

from engine import distributed
from engine.losses import headless
from engine.model_config import FINE_TUNE_MODES
from engine.run_folder import Run, beside_checkpoint
from extensions import GRADIENTS, HEADS, POOLING, SCHEDULES, TASK_LOSSES, TASK_WEIGHTS
from extensions.encoder import is_frozen
from extensions.specs import complete_options, require_run, technique_of
from files.downloads import default_cache_dir
from files.errors import UserError
from files.predictions import records
from files.tables import require_files
from files.writing import is_device, unwritable
from tasks import PREDICTED, SPLITS, TASKS
from tokenizer import load_tokenizer
from utils import get_device

BY_TASK = ("pooling", "heads", "loss", "pair_encoding", "pair_score", "task_batch_size")


def listed(given):
    """Return what a flag was given, one word, several or none, as a list."""
    return [given] if isinstance(given, str) else given or []


# ---- Before anything is loaded: lists of problems, a line each.


def shared_contradictions(args):
    """Return what cannot be meant together in the flags of both scripts, a line each."""
    problems, option = [], args.given.get("option")
    if option and args.fine_tune_mode and FINE_TUNE_MODES[args.fine_tune_mode] != option:
        problems.append(f"--option {option} and --fine-tune-mode {args.fine_tune_mode}, which means "
                        f"{FINE_TUNE_MODES[args.fine_tune_mode]}, contradict each other: leave one out")
    if args.compile == "graphs" and not (args.use_gpu and torch.cuda.is_available()):
        problems.append("--compile graphs works on CUDA alone: add --use_gpu, where there is such a GPU, or leave it "
                        "out")
    rows = max([args.batch_size, *getattr(args, "task_batch_size", {}).values()])
    if args.accumulate > rows:
        problems.append(f"--accumulate {args.accumulate} parts cannot be made of the {rows} rows of a step: give at "
                        f"most {rows}, or a larger --batch_size")
    return problems


def contradictions(args):
    """Return what cannot be meant together in the flags of multitask_classifier.py, a line each."""
    given, pairs = args.given, [task for task in args.tasks if TASKS[task].is_pair]
    problems = [*pair_contradictions(args, pairs), *loss_contradictions(args), *joint_contradictions(args)]
    if args.per_task_epochs and not args.run_dir:
        problems.append("--per_task_epochs needs a folder for the tasks' models: name a --run_dir too")
    if len(given.get("tasks", ())) > len(args.tasks):
        problems.append(f"--tasks {' '.join(given['tasks'])}: name each task once")
    for task in [name for name in TASKS if name not in args.tasks]:
        files = {*(f"{task}_{split}" for split in SPLITS), *(f"{task}_{split}_out" for split in PREDICTED)}
        idle = [f"--{name}" for name in given if name in files]
        idle += [f"--{name} {spec}" for name in BY_TASK for spec in listed(given.get(name))
                 if spec.startswith(f"{task}=")]
        among = (f"among --tasks {' '.join(args.tasks)}: leave one of the two out" if "tasks" in given
                 else "trained by default: name it in --tasks, or leave the flag out")
        problems += [f"{flag} is for {task}, which is not {among}" for flag in idle]
    return problems


def pair_contradictions(args, pairs):
    """Return what cannot be meant together in the flags about pairs, given those among the tasks."""
    given, problems = args.given, []
    for spec in listed(given.get("pair_score")):
        named = spec[: spec.rfind("=") + 1]  # "para=", or "" for all
        encodings = [args.pair_encoding[task] for task in args.pair_encoding if named in ("", f"{task}=")]
        if "bi" not in encodings and (not named or named[:-1] in args.tasks):
            typed = " ".join(f"--pair_encoding {word}" for word in listed(given.get("pair_encoding")))
            problems.append(f"--pair_score {spec} compares two encodings, and {typed or 'by default'} a pair is one "
                            f"sequence: add --pair_encoding {named}bi, or leave it out")
        problems += [f"--pair_score {spec}: a cosine is one number, and {task} has {TASKS[task].outputs} classes; name "
                     f"another score for it, such as {task}=concat" for task in pairs
                     if named in ("", f"{task}=") and spec.endswith("cosine") and args.pair_score[task] == "cosine"
                     and args.pair_encoding[task] == "bi" and TASKS[task].outputs > 1]
    problems += [f"--{flag} {spec} is for pairs, and there are none in --tasks {' '.join(args.tasks)}: leave it out"
                 for flag in ("pair_encoding", "pair_score", "pair_order") if not pairs
                 for spec in listed(given.get(flag)) if "=" not in spec]
    problems += [f"--heads {spec}: the cosine takes the place of that head; leave one of the two out"
                 for spec in given.get("heads", ()) for task in pairs if spec.startswith(f"{task}=")
                 and args.pair_encoding[task] == "bi" and args.pair_score[task] == "cosine"]
    shared = [task for task in args.pair_encoding if technique_of(args.heads[task], HEADS).shared]
    if shared:
        same = all(len({choice[task] for task in shared}) == 1
                   for choice in (args.heads, args.pair_encoding, args.pair_score))
        cosine = any(args.pair_encoding[task] == "bi" and args.pair_score[task] == "cosine" for task in shared)
        if len(shared) < 2 or not same or cosine or not set(shared) <= set(args.tasks):
            heads = " ".join(f"{task}={args.heads[task]}" for task in shared)
            problems.append(f"--heads {heads}: a shared trunk needs both tasks, with equal heads over equal encodings, "
                            "and no cosine in place of a head")
    return problems


def loss_contradictions(args):
    """Return what cannot be meant together in the losses of a task, or with a frozen encoder."""
    problems = []
    if args.option == "pretrain" and not args.adapt:
        problems += needs_heads(args.loss, args.tasks)
        if not args.resume:  # such runs have been begun, and their flags cannot be taken back
            problems += [f"--loss {task}={spec} trains the encoder alone, which --option pretrain freezes: leave it out"
                         for task in args.tasks for spec in args.loss[task]
                         if headless([spec]) and not headless(args.loss[task])
                         and not technique_of(args.pooling[task], POOLING).has_weights]
    for task in args.tasks:
        for spec in args.loss[task]:
            refused = technique_of(spec, TASK_LOSSES).not_with
            clash = [other for other in args.loss[task]
                     if technique_of(other, TASK_LOSSES).needs.get("output") in refused]
            if clash:
                problems.append(f"--loss {task}={spec}: not with {task}={clash[0]}, whose outputs are "
                                "log-probabilities; leave one of the two out")
    return problems


def needs_heads(losses, tasks):
    """Return a line for each task whose losses train no head: over a frozen encoder they would train nothing."""
    return [f"--loss {task}={losses[task][0]} trains the encoder alone, which this run freezes: add "
            f"a loss that trains a head, such as {task}={TASKS[task].loss}"
            for task in tasks if headless(losses[task])]


def joint_contradictions(args):
    """Return what cannot be meant together in --schedule, --gradient, --task_weights and the tasks."""
    problems = []
    if len(args.tasks) == 1:
        if args.task_weights != "fixed" and not args.resume:  # see loss_contradictions
            problems.append(f"--task_weights {args.task_weights} weighs several tasks, and --tasks names one: leave "
                            "one of the two out")
        if technique_of(args.gradient, GRADIENTS).per_task:
            problems.append(f"--gradient {args.gradient} combines several tasks' gradients, and --tasks names one: "
                            "leave one of the two out")
    elif technique_of(args.gradient, GRADIENTS).per_task and not has_joint_steps(args.schedule):
        problems.append(f"--gradient {args.gradient} combines several tasks' gradients, and --schedule {args.schedule} "
                        "has one task a step: leave --schedule out, or name round-robin without order=, or even")
    resizes = technique_of(args.schedule, SCHEDULES).resizes(**complete_options(args.schedule, SCHEDULES))
    if resizes and args.task_batch_size and not args.resume:  # see loss_contradictions
        problems.append(f"--task_batch_size: --schedule {args.schedule} sets the tasks' batch sizes itself; leave one "
                        "of the two out")
    for flag, spec, table in (("schedule", args.schedule, SCHEDULES),
                              ("task_weights", args.task_weights, TASK_WEIGHTS)):
        try:
            require_run(spec, table, args.tasks, args.epochs)
        except ValueError as error:
            problems.append(f"--{flag} {error}")
    return problems


def has_joint_steps(schedule):
    """Tell whether the steps of a schedule, a spec, have batches of several tasks."""
    return technique_of(schedule, SCHEDULES).joint(**complete_options(schedule, SCHEDULES))


def require_outputs(pretrained, filepath, run_dir, inputs, predictions):
    """Raise UserError, before any work, unless all that a run writes has a place where it can be written.

    `inputs` are the files that it reads, `predictions` those that it will write beside its own: none may take the
    place of another. Raises also when another process trains in the run's folder.
    """
    run, inputs = Run(run_dir), [*inputs]
    if not distributed.is_main():
        return
    pretrained = os.path.expanduser(pretrained)
    if os.path.isdir(pretrained):
        inputs += [entry.path for entry in os.scandir(pretrained)]
    elif os.path.exists(pretrained):
        inputs.append(pretrained)
    read = {os.path.realpath(path) for path in inputs}
    outputs = [*predictions, filepath, beside_checkpoint(filepath), *run.paths()]
    count = Counter(os.path.realpath(path) for path in outputs if not is_device(path))

    problems = []
    for path in dict.fromkeys(outputs):
        if os.path.realpath(path) in read:
            problems.append(f"{path} would be overwritten, and the run reads it: name another place")
        if count.pop(os.path.realpath(path), 1) > 1:
            problems.append(f"{path} is where two different files of the run would go: name another place for one")
    if run_dir:
        folder = os.path.realpath(run_dir)
        inside = [path for path in (*sorted(read), os.getcwd()) if Path(path).is_relative_to(folder)]
        if inside:
            problems.append(f"--run_dir {run_dir} holds {inside[0]}, and a run's folder may be moved aside by the "
                            "next: name a folder of its own")
    problems = problems or unwritable(dict.fromkeys(outputs))
    if problems:
        raise UserError("; ".join(problems))
    run.require_free()


def require_embeddings(pretrained, model):
    """Raise UserError if the tokenizer has tokens of which the model has no embedding."""
    tokens, embeddings = len(load_tokenizer(pretrained, default_cache_dir())), model.bert.config.vocab_size
    if tokens > embeddings:
        raise UserError(f"the tokenizer of {pretrained} has {tokens:,} tokens, and the model {embeddings:,} "
                        "embeddings: fetch both from one model")


def prepare(args, inputs, outputs):
    """Raise UserError, before any work, where a file to read is missing, or one to write has no place, or a GPU is.

    `inputs` and `outputs` are the data and prediction files of the run.
    """
    require_files(inputs)
    require_outputs(args.pretrained, args.filepath, args.run_dir, inputs, [*outputs, *records(outputs)])
    get_device(args.use_gpu)


# ---- Notes: what is allowed and does little.


def note_weights(pretrained):
    """Print a note when a run does not start from the only weights that the course's rules admit."""
    if pretrained != "bert-base-uncased":
        print(f"note: the course's rules admit only bert-base-uncased for grading, and this run starts from "
              f"{pretrained}")


def note_model(args, model):
    """Print a note on flags that an encoder makes idle: too large a --max_length, and training one that is frozen."""
    positions = model.bert.config.max_position_embeddings
    if args.max_length > positions:
        typed = f"--max_length {args.max_length} is more than" if "max_length" in args.given else "there are only"
        print(f"note: {typed} the {positions} positions of {args.pretrained}: longer texts are cut there")
    if not is_frozen(model.bert):
        return
    adapt = f"--adapt {' '.join(args.adapt)}"
    if args.option == "pretrain":
        if args.adapt:
            print(f"note: --option pretrain freezes the encoder, and {adapt} has nothing to train in it; "
                  "--option finetune trains it")
        dropout = [f"--dropout {site}" for site in getattr(args, "dropout", ()) if site != "head"]
        dropout += ["--encoder_dropout_prob"] if "encoder_dropout_prob" in args.given else []
        if dropout:
            print(f"note: --option pretrain runs the encoder without dropout: {', '.join(dropout)} has no effect")
    elif len(args.adapt) > 1:
        print(f"note: {adapt}: together, in this order, they leave nothing to train in the encoder")


def note_techniques(args, loaders):
    """Print which techniques do less in this run over {task: loader} than one might think."""
    if args.joint_for:
        print(f"note: {args.joint_for} needs batches of several tasks in one step: using --schedule {args.schedule}")
    parts = args.accumulate * distributed.world_size()
    for task, loader in loaders.items():
        comparing = [spec for spec in args.loss[task] if technique_of(spec, TASK_LOSSES).compares_rows]
        if comparing and parts > 1:
            print(f"note: {task}={comparing[0]} compares the rows of one of {parts} parts of a step, about "
                  f"{loader.batch_sampler.batch_size / parts:g}")
    epochs = technique_of(args.task_weights, TASK_WEIGHTS).needed_epochs
    if args.epochs < epochs:
        print(f"note: --task_weights {args.task_weights} leaves all tasks alike for the first {epochs - 1} "
              f"epochs, and this run has {args.epochs}")
