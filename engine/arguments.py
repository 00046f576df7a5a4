"""The flags that both training scripts have, and the way from a command line to a run's arguments.

`parser.given` parses, a script's `complete` adds what was not said, `resolve` joins both, takes over what a resumed run
was begun with, and checks. After that nothing changes: a training script takes the result apart.
"""

import argparse
import os

from engine.attention_backends import BACKENDS
from engine.batching import MAX_TOKENS_TRAIN, TRUNCATIONS
from engine.checks import shared_contradictions
from engine.model_config import FINE_TUNE_MODES
from engine.parser import COURSE, number, path_name, spec_of
from engine.run_folder import Run, plain
from extensions import ADAPT, ENCODER_FLAGS, PARAMETER_GROUPS, PENALTIES
from extensions.specs import technique_of
from files.errors import UserError, speaks

PRECISIONS = ("auto", "fp32", "bf16")
COMPILERS = ("auto", "none", "graphs", "inductor")
LR_SCHEDULES = ("linear", "cosine", "constant")
# Groups and flags of the short help, -h.
FIRST = (COURSE, "demo", "pretrained", "tasks", "dataset", "data_dir", "loss", "penalty", "schedule", "pair_encoding",
         "adapt", "precision", "accumulate", "run_dir", "resume", "help")
# Arguments that a resumed run must keep: with another value its weights or its order of rows would be another run's.
SETTLED = ("seed", "option", "pretrained", "tasks", *ENCODER_FLAGS, "pooling", "heads", "loss", "pair_encoding",
           "pair_score", "penalty", "schedule", "gradient", "task_weights", "param_groups", "batch_size", "max_tokens",
           "task_batch_size", "train_rows", "max_length", "truncation")


class RunArguments(argparse.Namespace):
    """A run's arguments, completed: each has its final type. `given` is {name: value} of the flags that were typed."""


def add_arguments(parser, learning_rates):
    """Add the flags that both training scripts have; `learning_rates` is {option: default of --lr}."""
    parser.learning_rates = learning_rates
    # What a script without flags of these names trains with.
    parser.set_defaults(init=None, gradient="sum", task_weights="fixed")
    group = parser.add_argument_group(COURSE)
    add = group.add_argument
    add("--option", choices=("pretrain", "finetune"), default="pretrain",
        help="pretrain: freeze BERT and train the heads; finetune: train BERT too")
    add("--fine-tune-mode", choices=tuple(FINE_TUNE_MODES), metavar="MODE",
        help=f"{', '.join(FINE_TUNE_MODES)}: the spring 2024 names of --option")
    add("--epochs", type=number(int, 1, 10_000), default=10, metavar="N", help="passes over the training rows")
    add("--batch_size", type=number(int, 1, 1_000_000), default=8, metavar="N",
        help="rows in a training step, all processes together")
    add("--lr", type=number(float, 0), metavar="RATE", help="peak learning rate (default: "
        + ", ".join(f"{lr:g} to {option}" for option, lr in learning_rates.items()) + ")")
    add("--hidden_dropout_prob", type=number(float, 0, below=1), default=0.3, metavar="P", help="dropout of the heads")
    add("--seed", type=number(int, 0, 2**32 - 1), default=11711, metavar="N", help="seed of all random numbers")
    add("--use_gpu", action="store_true", help="train on CUDA, or else on Apple's MPS")

    add = parser.add_argument_group("the encoder and its texts").add_argument
    add("--pretrained", type=path_name, default="bert-base-uncased", metavar="NAME",
        help="weights to begin with: a hub id, a folder, a file, a URL, or minilm for the packaged ones")
    add("--encoder_dropout_prob", type=number(float, 0, below=1), default=0.1, metavar="P", help="dropout inside BERT")
    add("--max_length", type=number(int, 5), default=512, metavar="N",
        help="tokens of a text, or of a pair in one sequence")
    add("--truncation", choices=TRUNCATIONS, default="head", metavar="END",
        help=f"{', '.join(TRUNCATIONS)}: the end of a long text that is kept; a pair in one sequence loses the end of "
        "its longer text")
    add("--skip_bad_rows", action="store_true", help="leave out and count the bad rows of a file, in place of stopping")

    add = parser.add_argument_group("extensions/architecture: what the encoder computes").add_argument
    for part, table in ENCODER_FLAGS.items():
        if part != "adapt":
            add(f"--{part}", type=spec_of(table), default=next(iter(table)), metavar="SPEC",
                help=f"the encoder's {part.replace('ffn', 'feed-forward').replace('norm', 'normalization')}: "
                f"{', '.join(table)}")
    add = parser.add_argument_group("extensions/tuning: what is trained, and how fast").add_argument
    add("--adapt", type=spec_of(ADAPT), action="append", default=[], metavar="SPEC",
        help=f"change the encoder or choose its trained weights: {', '.join(ADAPT)}. Repeat the flag for several; they "
        "are applied in this order")
    add("--param_groups", type=spec_of(PARAMETER_GROUPS), default="no-decay", metavar="SPEC",
        help=f"learning rates and weight decay by layer: {', '.join(PARAMETER_GROUPS)}")
    add = parser.add_argument_group("extensions/penalties: regularizers added to the loss").add_argument
    add("--penalty", type=spec_of(PENALTIES, "none"), action="append", metavar="SPEC",
        help=f"{', '.join(PENALTIES)}. Repeat the flag for several; none removes those before it")

    add = parser.add_argument_group("training").add_argument
    add("--lr_schedule", choices=LR_SCHEDULES, default="linear", metavar="SHAPE",
        help=f"{', '.join(LR_SCHEDULES)}: how the learning rate falls to 0 after the warm-up, or stays")
    add("--warmup", type=number(float, 0, 1), default=0.1, metavar="SHARE",
        help="share of the steps in which the learning rate rises from 0")
    add("--weight_decay", type=number(float, 0), default=0.01, metavar="RATE",
        help="AdamW's weight decay, by default not for biases and layer norms")
    add("--max_grad_norm", type=number(float, 1e-12), default=1.0, metavar="NORM",
        help="clip gradients to this L2 norm")
    add("--ema", type=number(float, 0, below=1), default=0.0, metavar="DECAY",
        help="score and keep an exponential moving average of the weights; 0 turns it off")
    add("--max_tokens", type=number(int, 1), default=MAX_TOKENS_TRAIN, metavar="N",
        help="upper limit of tokens per batch, padding included; long texts give smaller batches. Lower it if memory "
        "runs out")
    add("--accumulate", type=number(int, 1), default=1, metavar="N",
        help="split each batch in N parts if memory runs out: same update, apart from dropout noise and the losses "
        "mnrl, simcse and pearson")
    add("--max_steps", type=number(int, 1), metavar="N", help="stop after N optimizer steps, then score and predict")
    add("--eval_every", type=number(int, 1), metavar="STEPS",
        help="score every STEPS steps, in place of after each epoch")
    add("--patience", type=number(int, 1), metavar="N", help="stop after N scorings without a new best score")

    add = parser.add_argument_group("speed").add_argument
    add("--precision", choices=PRECISIONS, default="auto", metavar="TYPE",
        help=f"{', '.join(PRECISIONS)}: auto computes in bf16 where the processor has it; weights stay fp32")
    add("--compile", choices=COMPILERS, default="auto", metavar="HOW",
        help="none: the modules of bert.py; graphs: CUDA graphs; inductor: torch.compile; auto: graphs on CUDA, faster "
        "kernels elsewhere")
    add("--attention_backend", choices=BACKENDS, default="auto", metavar="KERNEL",
        help="math, efficient, flash: that kernel of torch; unpadded: leave padding out of the layers; auto: torch "
        "chooses")

    add = parser.add_argument_group("the run's folder").add_argument
    add("--run_dir", type=path_name, metavar="DIR",
        help="holds args.json, metrics.jsonl, best.pt and last.pt (default: a name in runs/)")
    add("--resume", action="store_true",
        help="continue from last.pt in --run_dir if it is there; repeat no other flags")
    add("--save", choices=("all", "trained"), default="all", metavar="WHAT",
        help="trained: leave the frozen pretrained weights out of checkpoints; all: keep everything")
    add("--save_every", type=number(int, 1), metavar="STEPS", help="write last.pt every STEPS steps too")
    add("--skip_predictions", action="store_true", help="only train: read no test file and write no prediction files")
    add("--log_every", type=number(int, 1), default=50, metavar="STEPS",
        help="steps between two lines of metrics.jsonl")
    add("--filepath", type=path_name, metavar="FILE",
        help="where the best checkpoint goes; without --run_dir it is the only file of the run that is kept")


def completed(given, parser):
    """Return RunArguments of {name: value}, or a namespace, and, for what is not there, the parser's defaults.

    The default learning rate is that of the first technique of --adapt that has one, else `parser.learning_rates` of
    the option, and of "pretrain" where --adapt freezes what was loaded.
    """
    given = given if isinstance(given, dict) else vars(given)
    args = RunArguments(**{**parser.defaults(), "given": {}, **given})
    if args.fine_tune_mode is not None:
        args.option = FINE_TUNE_MODES[args.fine_tune_mode]
    if args.lr is None:
        adapted = [technique_of(spec, ADAPT) for spec in args.adapt]
        frozen = any(technique.freezes for technique in adapted)
        default = parser.learning_rates["pretrain" if frozen else args.option]
        args.lr = next((technique.learning_rate for technique in adapted if technique.learning_rate), default)
    return args


def as_run(args, complete):
    """Return RunArguments as they are, and those that `complete` makes of another namespace, as course code has it."""
    return args if isinstance(args, RunArguments) else complete(args)


def with_run_dir(args, name):
    """Return `args` with run_dir, by default runs/NAME, and filepath, by default best.pt in it.

    Code that calls train() and names a file itself gets that file and no folder.
    """
    if args.run_dir is None and args.filepath is None:
        args.run_dir = f"runs/{name}"
    args.filepath = args.filepath or os.path.join(args.run_dir, "best.pt")
    return args


def resolve(given, complete, contradictions=lambda args: []):
    """Return the checked arguments of a command line, {name: value}, and, with --resume, of the run's first one.

    `complete({name: value})` returns RunArguments. The result's `given` holds what was typed on either command line;
    each argument that a resumed run does not keep is printed. Raises UserError for one that it must keep, and for
    flags that contradict each other: `contradictions(args)` lists those of the script's own.
    """
    args = complete(given)
    if args.run_dir is None and (args.resume or args.save_every):
        raise UserError("--resume and --save_every need a folder: with --filepath alone, the best weights are all that "
                        "is kept of a run; name a --run_dir too")
    if args.resume:
        stored = Run(args.run_dir).stored_arguments()
        before, typed = stored["args"], stored["given"]
        if before and ("data_set" in before) != hasattr(args, "data_set"):
            raise UserError(f"the run in {args.run_dir} is the other script's, of classifier.py and "
                            "multitask_classifier.py; resume it with that one, or name another --run_dir")
        # Without the flag again the predictions are made; a default that has changed since then is not taken over.
        typed = {name: value for name, value in typed.items() if name != "skip_predictions"}
        kept = {name: before[name] for name in ("lr", "schedule") if name in before}
        args = complete({**kept, **typed, **given})
        report_changes(before, args)
        given = {**typed, **given}
    args.given = given
    problems = [*shared_contradictions(args), *contradictions(args)]
    if problems:
        raise UserError("; ".join(problems))
    return args


def report_changes(before, args):
    """Print what a resumed run's arguments are now, and were; UserError where they must stay."""
    for name, value in before.items():
        now = plain(getattr(args, name, None))
        if now == value or name in ("resume", "run_dir", "filepath", "given", "skip_predictions"):
            continue
        if name in SETTLED:
            raise UserError(f"--{name} is {now}, but the run in {args.run_dir} began with {value}; leave the "
                            "flag out, or begin anew in another --run_dir")
        if speaks():
            print(f"resume: --{name} is {now} now, was {value}")
