"""The command line that both training scripts share: flags, files of flags, and what a resumed run remembers."""

import argparse
import math
import os
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import torch

from datasets import TRUNCATIONS, load_tokenizer
from engine import distributed
from engine.attention_backends import BACKENDS
from engine.batching import MAX_TOKENS_TRAIN
from engine.model_config import FINE_TUNE_MODES
from engine.run_folder import Run, beside_checkpoint, plain
from evaluation import records
from extensions import ADAPT, ENCODER_FLAGS, PARAMETER_GROUPS, PENALTIES
from extensions.encoder import is_frozen
from extensions.specs import require_effect, technique_of
from files.downloads import default_cache_dir
from files.errors import Parser, UserError, speaks
from files.writing import is_device, unwritable

PRECISIONS = ("auto", "fp32", "bf16")
COMPILERS = ("auto", "none", "graphs", "inductor")
LR_SCHEDULES = ("linear", "cosine", "constant")
# Arguments that a resumed run must keep: with another value its weights or its order of rows would be another run's.
SETTLED = ("seed", "option", "pretrained", "tasks", *ENCODER_FLAGS, "pooling", "heads", "loss", "pair_encoding",
           "pair_score", "penalty", "schedule", "gradient", "task_weights", "param_groups", "batch_size", "max_tokens",
           "task_batch_size", "train_rows", "max_length", "truncation")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help that names the defaults, where there are any."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(Parser):
    """A parser whose `@FILE` holds flags as on a command line, many a line, with # comments."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=HelpFormatter, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        return super().parse_known_args(self.expand(sys.argv[1:] if args is None else args), namespace)

    def expand(self, argv, within=()):
        """Return `argv` with the flags of the files in place of each @FILE; `within` are the files around it."""
        flags = []
        for word in argv:
            flags += self.read(word[1:], within) if word.startswith("@") else [word]
        return flags

    def read(self, path, within):
        """Return the flags in a file; what is wrong with it ends the script, with file and line."""
        if os.path.realpath(path) in within:
            self.error(f"@{path} names itself, by way of {len(within)} files; take that line out")
        flags = []
        try:
            with open(path, "rb") as file:
                for line, text in enumerate(file, start=1):
                    if b"\0" in text:
                        raise ValueError("a NUL byte")
                    flags += shlex.split(text.decode("utf-8-sig" if line == 1 else "utf-8"), comments=True)
        except OSError as error:
            self.error(f"@{path} cannot be read ({error.strerror}); name a file of flags, as those in recipes/")
        except ValueError as error:  # no UTF-8, or a quotation that does not end
            self.error(f"{path}, line {line}: {error}; is it a file of flags, as those in recipes/?")
        return self.expand(flags, (*within, os.path.realpath(path)))

    def given(self, argv):
        """Return {name: value} of the arguments that stand in `argv`, without any default."""
        absent = object()
        gathers = (argparse._AppendAction, argparse._ExtendAction)  # they add to what is there: to None
        namespace = argparse.Namespace(**{
            action.dest: None if isinstance(action, gathers) else absent for action in self._actions})
        self.parse_args(argv, namespace)
        return {name: value for name, value in vars(namespace).items() if value is not absent and value is not None}


def number(kind, minimum, maximum=math.inf, below=math.inf):
    """Return an argparse type: an int or float from `minimum` to `maximum`, and less than `below`."""

    def check(text):
        value = kind(text)
        for right, bound in ((value >= minimum, f"at least {minimum}"), (value <= maximum, f"at most {maximum}"),
                             (value < math.inf, "finite"), (value < below, f"below {below}")):
            if not right:
                raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    check.__name__ = kind.__name__  # argparse names it when the text is no number
    return check


def rows_or_share(text):
    """Return the rows N that a text names, or the text of a share, "P%"; for argparse."""
    if not re.fullmatch(r"[1-9]\d*|(\d+\.?\d*|\.\d+)%", text) or text.endswith("%") and not 0 < float(text[:-1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text}: give a number of rows, or a share such as 10%")
    return text if text.endswith("%") else int(text)


def path_name(text):
    """Return the text, as an argparse type for the names of files and folders: any but an empty one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; leave the flag out to get its default")
    return text


def spec_of(table, *words):
    """Return an argparse type that checks a technique's spec against `table` (or is one of `words`) and returns it."""

    def check(spec):
        try:
            if spec not in words:
                require_effect(spec, table)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return spec

    return check


def add_arguments(parser, learning_rates):
    """Add the flags that both training scripts have; `learning_rates` is {option: default of --lr}."""
    parser.learning_rates = learning_rates
    # What a script without flags of these names trains with.
    parser.set_defaults(init=None, gradient="sum", task_weights="fixed")
    add = parser.add_argument
    add("--seed", type=number(int, 0, 2**32 - 1), default=11711, help="of every random choice")
    add("--epochs", type=number(int, 1, 10_000), default=10, help="passes over the training rows")
    add("--option", choices=("pretrain", "finetune"), default="pretrain",
        help="pretrain: the BERT parameters are frozen; finetune: they are updated too")
    add("--fine-tune-mode", choices=tuple(FINE_TUNE_MODES), help="the spring 2024 names of --option")
    add("--use_gpu", action="store_true", help="train on CUDA, or else on Apple's MPS")
    add("--batch_size", type=number(int, 1, 1_000_000), default=8,
        help="rows of a training step, whatever computes them")
    add("--hidden_dropout_prob", type=number(float, 0, below=1), default=0.3, help="dropout of the heads")
    add("--lr", type=number(float, 0), help="peak learning rate (default: "
        + ", ".join(f"{lr:g} to {option}" for option, lr in learning_rates.items()) + ")")
    add("--pretrained", type=path_name, default="bert-base-uncased",
        help="hub id, directory, file or URL of the weights, or minilm for the packaged ones")

    group = parser.add_argument_group("texts")
    group.add_argument("--max_length", type=number(int, 5), default=512, help="tokens of a text, or of a packed pair")
    group.add_argument("--truncation", choices=TRUNCATIONS, default="head",
                       help="which end of a long text is kept; a packed pair loses the end of its longer text")
    group.add_argument("--skip_bad_rows", action="store_true",
                       help="leave out rows that are not as they must be, and count them, where the run would stop")

    group = parser.add_argument_group("the encoder (NAME[:KEY=VALUE,...]; README lists what there is)")
    add = group.add_argument
    for part, table in ENCODER_FLAGS.items():
        if part != "adapt":
            add(f"--{part}", type=spec_of(table), default=next(iter(table)), metavar="SPEC", help=", ".join(table))
    add("--adapt", type=spec_of(ADAPT), action="append", default=[], metavar="SPEC",
        help=f"{', '.join(ADAPT)}: repeat the flag for several, in this order")

    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--encoder_dropout_prob", type=number(float, 0, below=1), default=0.1, help="dropout inside BERT")
    add("--lr_schedule", choices=LR_SCHEDULES, default="linear", help="how lr falls to 0 after the warm-up, or stays")
    add("--warmup", type=number(float, 0, 1), default=0.1, help="share of the steps in which lr rises from 0")
    add("--weight_decay", type=number(float, 0), default=0.01, help="by default of all but biases and layer norms")
    add("--param_groups", type=spec_of(PARAMETER_GROUPS), default="no-decay", metavar="SPEC",
        help=f"{', '.join(PARAMETER_GROUPS)}: which parameters share learning rate and weight decay")
    add("--penalty", type=spec_of(PENALTIES, "none"), action="append", metavar="SPEC",
        help=f"{', '.join(PENALTIES)}: a regularizer added to the losses; repeat the flag for several, "
        "none takes back those named before")
    add("--max_tokens", type=number(int, 1), default=MAX_TOKENS_TRAIN, metavar="N",
        help="padded tokens of a batch, of pairs as one sequence: where texts are longer it has fewer rows")
    add("--accumulate", type=number(int, 1), default=1, metavar="N",
        help="take the rows of a step through the model in N parts: the same update with less memory, but for what is "
        "drawn at random and for losses that compare the rows of a batch")
    add("--max_grad_norm", type=number(float, 1e-12), default=1.0, help="gradients are clipped to this L2 norm")
    add("--ema", type=number(float, 0, below=1), default=0.0, metavar="DECAY",
        help="score and keep an exponential moving average of the weights, of this decay a step; 0 is without")
    add("--max_steps", type=number(int, 1), help="stop after this many optimizer steps, then score and write")
    add("--eval_every", type=number(int, 1), metavar="STEPS", help="score every so many steps, not after each epoch")
    add("--patience", type=number(int, 1), metavar="N", help="stop after N scorings without a better one")

    group = parser.add_argument_group("speed")
    add = group.add_argument
    add("--precision", choices=PRECISIONS, default="auto",
        help="auto: bf16 autocast where the processor computes in it; the weights stay fp32")
    add("--compile", choices=COMPILERS, default="auto",
        help="none: the modules of bert.py as they are; graphs: every step one CUDA graph; inductor: torch.compile; "
        "auto: graphs on CUDA, the faster kernels elsewhere")
    add("--attention_backend", choices=BACKENDS, default="auto",
        help="math, efficient, flash: that kernel of torch's, where it is there; unpadded: the layers run over real "
        "tokens alone, for batches of texts of unequal lengths; auto: as torch chooses")

    group = parser.add_argument_group("the run's folder")
    add = group.add_argument
    add("--run_dir", type=path_name, metavar="DIR",
        help="holds args.json, metrics.jsonl, best.pt, last.pt (default: a name in runs/)")
    add("--resume", action="store_true",
        help="go on from last.pt in the run's folder, if it is there; flags need not be repeated")
    add("--save", choices=("all", "trained"), default="all",
        help="trained: checkpoints leave out the pretrained weights that stay as they are; those are loaded anew")
    add("--save_every", type=number(int, 1), metavar="STEPS", help="write last.pt every so many steps too")
    add("--skip_predictions", action="store_true", help="train alone: read no test file, write no prediction files")
    add("--log_every", type=number(int, 1), default=50, metavar="STEPS", help="steps to a line of metrics.jsonl")
    add("--filepath", type=path_name, metavar="PATH",
        help="where the best checkpoint goes; alone, it is the one file kept of the run")


def note_weights(args):
    """Say so when a run does not start from the only weights that the course's rules admit."""
    if args.pretrained != "bert-base-uncased":
        print(f"note: the course's rules admit only bert-base-uncased for grading, and this run starts from "
              f"{args.pretrained}")


def note_length(args, model):
    """Say so when --max_length is more than the encoder takes."""
    positions = model.bert.config.max_position_embeddings
    if args.max_length > positions:
        print(f"note: --max_length {args.max_length} is more than the {positions} positions of {args.pretrained}: "
              "longer texts are cut there")


def note_idle_encoder_flags(args, model):
    """Say so when flags are about training an encoder in which nothing is trained."""
    if not is_frozen(model.bert):
        return
    adapt = f"--adapt {' '.join(args.adapt)}"
    if args.option == "pretrain":
        if args.adapt:
            print(f"note: --option pretrain freezes the encoder, and {adapt} has nothing to train in it; "
                  "--option finetune trains it")
        dropout = [f"--dropout {site}" for site in getattr(args, "dropout", ()) if site != "head"]
        dropout += ["--encoder_dropout_prob"] if "encoder_dropout_prob" in getattr(args, "given", ()) else []
        if dropout:
            print(f"note: --option pretrain runs the encoder without dropout: {', '.join(dropout)} changes nothing")
    elif len(args.adapt) > 1:
        print(f"note: {adapt}: together, in this order, they leave nothing to train in the encoder")


def check_tokenizer(args, model):
    """Raise UserError if the tokenizer has tokens that the model has no embedding of."""
    tokens, embeddings = len(load_tokenizer(args.pretrained, default_cache_dir())), model.bert.config.vocab_size
    if tokens > embeddings:
        raise UserError(f"the tokenizer of {args.pretrained} has {tokens:,} tokens, and the model {embeddings:,} "
                        "embeddings: fetch both from one model")


def with_defaults(args, parser):
    """Return a namespace with `args` and, for what it lacks, the parser's defaults.

    The default learning rate is that of the first technique of --adapt that has one, else `parser.learning_rates` of
    the option, and of "pretrain" where --adapt freezes what was loaded.
    """
    args = argparse.Namespace(**{**vars(parser.parse_args([])), **vars(args)})
    if args.fine_tune_mode is not None:
        args.option = FINE_TUNE_MODES[args.fine_tune_mode]
    if args.lr is None:
        adapted = [technique_of(spec, ADAPT) for spec in args.adapt]
        frozen = any(technique.freezes for technique in adapted)
        own = [technique.learning_rate for technique in adapted if technique.learning_rate is not None]
        args.lr = [*own, parser.learning_rates["pretrain" if frozen else args.option]][0]
    return args


def with_run_dir(args, name):
    """Return `args` with run_dir, by default runs/NAME, and filepath, by default best.pt in it.

    Code that calls train() and names a file itself gets that file and no folder.
    """
    if args.run_dir is None and args.filepath is None:
        args.run_dir = f"runs/{name}"
    args.filepath = args.filepath or f"{args.run_dir}/best.pt"
    return args


def parse(parser, complete, argv, contradictions=lambda args: []):
    """Return the arguments that `argv` and, with --resume, the run's first command line give.

    `complete(namespace)` adds the defaults. The result's `given` holds what was said on either command line;
    each argument that a resumed run does not keep is printed. Raises UserError for one that it must keep, and for
    flags that contradict each other: `contradictions(args)` lists those of the script's own.
    """
    given = parser.given(argv)
    args = complete(argparse.Namespace(**given))
    if args.run_dir is None and (args.resume or args.save_every):
        raise UserError("--resume and --save_every need a folder: with --filepath alone, the best weights are all that "
                        "is kept of a run; name a --run_dir too")
    if args.resume:
        stored = Run(args.run_dir).stored_arguments()
        if stored["args"] and ("data_set" in stored["args"]) != hasattr(args, "data_set"):
            raise UserError(f"the run in {args.run_dir} is the other script's, of classifier.py and "
                            "multitask_classifier.py; resume it with that one, or name another --run_dir")
        if stored["args"]:  # of a run from before that flag
            stored["args"].setdefault("max_tokens", MAX_TOKENS_TRAIN)
        # Without the flag again the predictions are made; a default that has changed since then is not taken over.
        stored["given"].pop("skip_predictions", None)
        kept = {"lr": stored["args"]["lr"]} if "lr" in stored["args"] else {}
        args = complete(argparse.Namespace(**{**kept, **stored["given"], **given}))
        for name, before in stored["args"].items():
            now = plain(getattr(args, name, None))
            if now == before or name in ("resume", "run_dir", "filepath", "given", "skip_predictions"):
                continue
            if name in SETTLED:
                raise UserError(f"--{name} is {now}, but the run in {args.run_dir} began with {before}; leave the "
                                "flag out, or begin anew in another --run_dir")
            if speaks():
                print(f"resume: --{name} is {now} now, was {before}")
        given = {**stored["given"], **given}
    args.given = given
    problems = [*shared_contradictions(args), *contradictions(args)]
    if problems:
        raise UserError("; ".join(problems))
    return args


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


def require_outputs(args, inputs, predictions):
    """Raise UserError, before any work, unless all that the run writes has a place where it can be written.

    `inputs` are the files that it reads, `predictions` those that it will write beside its own: none may take the
    place of another. Raises also when another process trains in the run's folder.
    """
    run, inputs = Run(args.run_dir), [*inputs]
    if not distributed.is_main():
        return
    pretrained = os.path.expanduser(args.pretrained)
    if os.path.isdir(pretrained):
        inputs += [entry.path for entry in os.scandir(pretrained)]
    elif os.path.exists(pretrained):
        inputs.append(pretrained)
    read = {os.path.realpath(path) for path in inputs}
    outputs = [*predictions, *records(predictions), args.filepath, beside_checkpoint(args.filepath), *run.paths()]
    count = Counter(os.path.realpath(path) for path in outputs if not is_device(path))

    problems = []
    for path in dict.fromkeys(outputs):
        if os.path.realpath(path) in read:
            problems.append(f"{path} would be overwritten, and the run reads it: name another place")
        if count.pop(os.path.realpath(path), 1) > 1:
            problems.append(f"{path} is where two different files of the run would go: name another place for one")
    if args.run_dir:
        folder = os.path.realpath(args.run_dir)
        inside = [path for path in (*sorted(read), os.getcwd()) if Path(path).is_relative_to(folder)]
        if inside:
            problems.append(f"--run_dir {args.run_dir} holds {inside[0]}, and a run's folder may be moved aside by the "
                            "next: name a folder of its own")
    problems = problems or unwritable(dict.fromkeys(outputs))
    if problems:
        raise UserError("; ".join(problems))
    run.require_free()
