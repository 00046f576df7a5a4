"""Part 2: one BERT for sentiment (SST), paraphrase (Quora) and similarity (STS), trained together.

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

import argparse
import os
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn as nn

import evaluation
from datasets import SentenceClassificationDataset, SentencePairDataset, load_multitask_data
from engine import distributed
from engine.arguments import (
    ArgumentParser,
    add_arguments,
    check_tokenizer,
    note_idle_encoder_flags,
    note_length,
    note_weights,
    number,
    parse,
    path_name,
    require_outputs,
    rows_or_share,
    with_defaults,
    with_run_dir,
)
from engine.batching import bucket_loader
from engine.checkpoint import load_checkpoint, load_weights, require_room, restoring, save_model, with_stored
from engine.checks import contradictions, note_weak_choices, require_heads
from engine.choices import add_technique_arguments, resolve_techniques
from engine.feature_cache import are_fixed, features_of, frozen_loader
from engine.loop import SEEN_ROWS, fit, optimizer_settings
from engine.losses import needed, total_loss
from engine.model_config import load_encoder, read_config
from engine.run_folder import Run
from engine.step import autocast, make_optimizer, use_faster_modules
from evaluation import collect, model_eval_multitask, multitask_loaders, overall_score
from extensions import ENCODER_FLAGS, HEADS, OUTPUTS, PAIR_FEATURES, POOLING, SCHEDULES
from extensions.architecture.dropout_sites import set_dropout
from extensions.encoder import is_frozen, takes_task
from extensions.heads.heads import CosineHead, Relational
from extensions.heads.pairs import encode_apart, pack_pairs, swapped
from extensions.heads.pooling import hidden_states_of
from extensions.specs import from_spec, made
from files.errors import UserError, run_script
from files.tables import FORMATS, read_sound, require_files
from tasks import COURSE_TASKS, PAIR_TASKS, TASKS
from utils import get_device, seed_everything

BERT_HIDDEN_SIZE = 768  # a name of the course; the encoder's own config tells its size
N_SENTIMENT_CLASSES = 5

ROOT = os.path.dirname(os.path.abspath(__file__))
LEARNING_RATES = {"pretrain": 1e-3, "finetune": 7e-6}
# The arguments that decide which parameters the model has, and what they compute.
ARCHITECTURE = ("hidden_dropout_prob", "encoder_dropout_prob", "option", "pretrained", "pooling", "heads", "outputs",
                "pair_encoding", "pair_score", "pair_order", *ENCODER_FLAGS, "max_length")
FILES = {"sst": "ids-sst-{}.csv", "para": "quora-{}.csv", "sts": "sts-{}.csv"}


# (scale, bias) with which a cosine starts, of labels up to `maximum`: duplicates lie above a cosine of one half.
FIRST_COSINE = {"binary": lambda maximum: (10.0, -5.0), "real": lambda maximum: (float(maximum), 0.0)}


def for_each_task(tasks, value):
    """Return {task: value} of one value for all tasks, or of a dict by task as it is."""
    return value if isinstance(value, dict) else dict.fromkeys(tasks, value)


class MultitaskBERT(nn.Module):
    """One encoder, and a head for each task.

    `config` (a namespace, or a dict as loaded from a checkpoint) has `hidden_dropout_prob` and `option`
    ("pretrain" freezes BERT, which then also runs without dropout), and may have, for all tasks or as a dict by
    task: `pooling` (of POOLING), `heads` (of HEADS), `outputs` (of OUTPUTS, in place of a head's linear output) and,
    of pairs, `pair_encoding` ("cross": a pair is one sequence, as in Devlin et al. 2019; "bi": two, compared
    afterwards) and `pair_score` (of "bi": one of PAIR_FEATURES for the head to read, or "cosine"), and for all
    `pair_order` ("both": predictions are the mean over both orders of a pair's texts). `norm`, `ffn`, `attention` and
    `positions` are specs of parts of the encoder, `adapt` is a list of specs of ADAPT, `max_length` the tokens of a
    sequence. `tasks` names tasks of the table beyond the course's three, which always have heads.
    """

    def __init__(self, config):
        super().__init__()
        self.config = self.settings(config)
        self.tasks = tuple(dict.fromkeys((*COURSE_TASKS, *self.config.tasks)))
        self.bert = load_encoder(self.config)
        self.max_length = min(self.config.max_length, self.bert.config.max_position_embeddings)
        self.pair_order = self.config.pair_order
        pairs = [task for task in self.tasks if TASKS[task].is_pair]
        self.pair_encoding, self.pair_score = (
            for_each_task(pairs, choice) for choice in (self.config.pair_encoding, self.config.pair_score))
        self.pooling = nn.ModuleDict({task: made(spec, POOLING, self.bert)
                                      for task, spec in for_each_task(self.tasks, self.config.pooling).items()})
        # For all tasks alike: what --compile inductor has made of an encoder does not see hooks come and go.
        self.needs_layers = any(pooler.needs_layers for pooler in self.pooling.values())
        for task in self.tasks:
            setattr(self, TASKS[task].head, self.make_head(task))
        trunks = [head for head in map(self.head_of, pairs) if isinstance(head, Relational)]
        for head in trunks[1:]:
            head.share(trunks[0])

    @staticmethod
    def settings(config):
        """Return a configuration completed by what it means where it says nothing."""
        return read_config(config, pooling="cls", heads="mlp", outputs={}, pair_encoding="cross", pair_score="concat",
                           pair_order="given", max_length=512, tasks=COURSE_TASKS)

    def make_head(self, task):
        """Return the head that the configuration names for a task: over one encoding, or over what compares two."""
        C, outputs, width = self.bert.config.hidden_size, TASKS[task].outputs, 1
        if self.pair_encoding.get(task) == "bi":
            if self.pair_score[task] == "cosine":
                return CosineHead(*FIRST_COSINE[TASKS[task].kind](TASKS[task].form.maximum))
            width = PAIR_FEATURES[self.pair_score[task]].width
        spec = for_each_task(self.tasks, self.config.heads)[task]
        try:
            head = from_spec(spec, HEADS)(width * C, C, outputs, self.config.hidden_dropout_prob)
        except ValueError as error:
            raise UserError(f"--heads {task}={spec}: {error}") from error
        if task in self.config.outputs:
            head[-1] = OUTPUTS[self.config.outputs[task]](head[-1].in_features, outputs)
        if TASKS[task].kind == "real":
            nn.init.constant_(head[-1].bias, TASKS[task].form.maximum / 2)  # the middle of the labels
        return head

    def head_of(self, task):
        """Return a task's head."""
        return self.get_submodule(TASKS[task].head)

    def train(self, mode=True):
        """Switch to training mode, all but a frozen encoder in which nothing has been made trainable."""
        super().train(mode)
        self.bert.train(mode and not (self.config.option == "pretrain" and is_frozen(self.bert)))
        return self

    def forward(self, input_ids, attention_mask, token_type_ids=None, task="sst"):
        """Return the pooled encoding of input_ids (B, T) that `task` uses, in fp32: (B, C)."""
        options = {"task": task} if takes_task(self.bert) else {}
        with hidden_states_of(self.bert) if self.needs_layers else nullcontext() as states:
            output = self.bert(input_ids, attention_mask, token_type_ids, **options)
        return self.pooling[task]({**output, "hidden_states": states}, attention_mask)

    def encode(self, task, batch):
        """Return the encodings of a batch on the model's device: [(B, C)], or u and v, (B, C) each, of pairs apart.

        A pair comes as the contract's two texts, or already packed into one sequence with its token types.
        batch["features"] are encodings that have been computed before.
        """
        if "features" in batch:
            return features_of(batch)
        if "token_ids" in batch:
            return [self(batch["token_ids"], batch["attention_mask"], batch.get("token_type_ids"), task=task)]
        sides = [batch[f"{name}_{side}"] for side in (1, 2) for name in ("token_ids", "attention_mask")]
        if self.pair_encoding[task] == "cross":
            return [self(*pack_pairs(*sides, self.max_length), task=task)]
        return encode_apart(partial(self, task=task), *sides)

    def score(self, task, encodings):
        """Return the logits (B, K), or (B,) of one output, of encodings, in fp32 whatever the encoder ran in."""
        with torch.autocast(encodings[0].device.type, enabled=False):
            if len(encodings) == 2 and self.pair_score[task] != "cosine":
                encodings = [PAIR_FEATURES[self.pair_score[task]](*encodings)]
            logits = self.head_of(task)(*encodings)
        return logits.squeeze(-1) if TASKS[task].outputs == 1 else logits

    def logits(self, task, batch):
        """Return the logits (B, K) or (B,) of a batch on the model's device."""
        return self.score(task, self.encode(task, batch))

    def predict(self, task, batch):
        """Return the logits of a batch from which predictions are made.

        Of classes the largest is predicted: an output layer may have a decision of its own. Pairs are read in one order
        or, by the settings, in both.
        """
        logits = self.logits(task, batch)
        if TASKS[task].is_pair and self.pair_order == "both":
            logits = (logits + self.logits(task, swapped(batch))) / 2
        return self.head_of(task)[-1].decision(logits) if task in self.config.outputs else logits

    def predict_sentiment(self, input_ids, attention_mask):
        """Return the logits (B, 5) of the sentiment classes of input_ids (B, T)."""
        return self.predict("sst", {"token_ids": input_ids, "attention_mask": attention_mask})

    def predict_paraphrase(self, input_ids_1, attention_mask_1, input_ids_2, attention_mask_2):
        """Return one logit a pair, (B,), above 0 for a paraphrase; the texts are (B, T1) and (B, T2)."""
        return self.predict("para", {"token_ids_1": input_ids_1, "attention_mask_1": attention_mask_1,
                                     "token_ids_2": input_ids_2, "attention_mask_2": attention_mask_2})

    def predict_similarity(self, input_ids_1, attention_mask_1, input_ids_2, attention_mask_2):
        """Return one similarity a pair, (B,), on the labels' scale of 0 to 5 but not bound to it."""
        return self.predict("sts", {"token_ids_1": input_ids_1, "attention_mask_1": attention_mask_1,
                                    "token_ids_2": input_ids_2, "attention_mask_2": attention_mask_2})


def low_shot(rows, count, seed):
    """Return `count` of the rows, or that share of them ("10%"), the same for the same seed; all when it is None."""
    if isinstance(count, str):
        count = max(1, round(len(rows) * float(count[:-1]) / 100))
    if count is None or count >= len(rows):
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return [rows[i] for i in sorted(chosen.tolist())]


def build_model(args):
    """Return (model, the configuration that a checkpoint keeps of it), with the weights to begin with."""
    config = SimpleNamespace(num_labels=N_SENTIMENT_CLASSES, data_dir=".", tasks=getattr(args, "of_tasks", args.tasks),
                             **{name: getattr(args, name) for name in ARCHITECTURE})
    model = MultitaskBERT(config)
    if is_frozen(model.bert):
        require_heads(args)
    config.hidden_size = model.bert.config.hidden_size
    set_dropout(model, args.dropout)
    last = Run(args.run_dir).last
    if args.init and args.resume and os.path.exists(last or ""):
        with restoring(last):  # not by `fit` alone: features and teachers are made of frozen weights before that
            load_weights(model, load_checkpoint(last))
    elif args.init:
        begin_with(model, args.init)
    return model, config


def begin_with(model, filepath):
    """Load the weights of a checkpoint. Raises UserError, naming the settings that differ, where they do not fit."""
    saved = load_checkpoint(filepath)
    try:
        load_weights(model, saved)
    except RuntimeError as error:
        theirs = vars(MultitaskBERT.settings(saved["model_config"]))
        differing = [f"--{name} {theirs[name]} there, {value} here" for name, value in vars(model.config).items()
                     if name in ARCHITECTURE and theirs[name] != value]
        raise UserError(f"--init {filepath} is of another model ({'; '.join(differing) or error}): give this run the "
                        "flags of that one") from error


def training_loaders(args):
    """Return {task: loader} of the training files over the tasks in args.tasks."""
    files = [getattr(args, f"{task}_train") if task in args.tasks else None for task in COURSE_TASKS]
    sst, _, para, sts = load_multitask_data(*files, split="train", skip_bad_rows=args.skip_bad_rows)
    sst, para, sts = (low_shot(rows, args.train_rows, args.seed) for rows in (sst, para, sts))
    data = {"sst": SentenceClassificationDataset(sst, args), "para": SentencePairDataset(para, args),
            "sts": SentencePairDataset(sts, args, isRegression=True)}
    return {task: bucket_loader(data[task], args.task_batch_size.get(task, args.batch_size), args.max_tokens,
                                shuffle=True, seed=args.seed + i, pair_encoding=args.pair_encoding.get(task),
                                pin_memory=args.use_gpu)
            for i, task in enumerate(COURSE_TASKS) if task in args.tasks}


def of_features(loaders, model, device):
    """Return {task: loader} of the features that a frozen encoder has of what these loaders read."""
    return {task: frozen_loader(loader, model, device, task, collect) for task, loader in loaders.items()}


def frozen_loaders(model, device, *args):
    """As `evaluation.multitask_loaders(*args)`, with the features of a frozen encoder."""
    loaders, rows = multitask_loaders(*args)
    return of_features(loaders, model, device), rows


def scores_text(scores):
    """Return {task: metric} as one line, with the overall score where all three tasks are there."""
    text = ", ".join(f"{task} {score:.3f}" for task, score in scores.items())
    return f"{text}, overall {overall_score(scores):.3f}" if len(scores) == len(COURSE_TASKS) else text


def train_multitask(args):
    """Train on the tasks in args.tasks, save the weights with the best dev score to args.filepath; return that score.

    A sample of the training rows is scored too: its distance from dev shows how far a task is overfitted.
    """
    args = complete(args)
    seed_everything(args.seed)
    device = get_device(args.use_gpu)
    model, config = build_model(args)
    model = model.to(device)
    require_room(model, args)
    check_tokenizer(args, model)
    note_length(args, model)
    note_idle_encoder_flags(args, model)

    loaders, (dev_loaders, _) = training_loaders(args), multitask_loaders(args, "dev")
    if are_fixed(model, args.loss, args.penalty):
        with autocast(device, args.precision):
            loaders, dev_loaders = (of_features(each, model, device) for each in (loaders, dev_loaders))
    schedule = made(args.schedule, SCHEDULES, loaders, args.seed, args.epochs)
    if schedule.resizes and args.task_batch_size and not args.resume:  # `even` was once begun with both
        raise UserError(f"--task_batch_size: --schedule {args.schedule} sets the tasks' batch sizes itself; leave one "
                        "of the two out")
    announce(schedule, args)
    note_weak_choices(args, schedule.loaders)
    seen = {task: loader.sample(SEEN_ROWS, args.seed) for task, loader in loaders.items()}
    optimizer = make_optimizer(model, **optimizer_settings(args))
    losses = {task: total_loss(args.loss[task]) for task in loaders}

    def scores_on(split_loaders):
        results = model_eval_multitask(*(split_loaders.get(task) for task in COURSE_TASKS), model, device)
        return {task: results[3 * i] for i, task in enumerate(COURSE_TASKS) if task in split_loaders}

    def evaluate():
        dev = scores_on(dev_loaders)
        return overall_score(dev), scores_text(dev), {"dev": dev, "train": scores_on(seen)}

    return fit(model, schedule, losses, optimizer, evaluate,
               lambda filepath, **more: save_model(model, optimizer, args, config, filepath, **more), device, args)


def announce(schedule, args):
    """Print each task's batches, how its pairs are encoded where a loss decides that, and every epoch's counts."""
    for task, loader in schedule.loaders.items():
        need, loss = needed(args.loss, "pair_encoding", task)
        apart = task in PAIR_TASKS and need == "bi"
        print(f"{task}: {loader.described()}"
              + (f"; pairs encoded apart, as {loss.partition(':')[0]} needs" if apart else ""))
    for epoch in range(args.epochs):
        counts = schedule.counts(epoch)
        if epoch == 0 or counts != schedule.counts(epoch - 1):
            since = f" from epoch {epoch + 1} on" if epoch else ""
            print(f"batches an epoch{since}: {', '.join(f'{task} {n}' for task, n in counts.items())}")


def fine_tune_each(args):
    """Go on from args.filepath with each task alone, for args.per_task_epochs; the model of a task is in its folder.

    Where that does not raise the task's dev score, its model is the shared one.
    """
    for task in args.tasks:
        train_multitask(of_task(args, task))


def of_task(args, task):
    """Return the arguments of one task's own fine-tuning.

    It is resumed only if it began from the shared weights as they are now.
    """
    folder = os.path.join(args.run_dir, task)
    last = os.path.join(folder, "last.pt")
    begun = os.path.exists(last) and os.path.getmtime(last) >= os.path.getmtime(args.filepath)
    return argparse.Namespace(**{**vars(args), "tasks": [task], "epochs": args.per_task_epochs, "init": args.filepath,
                                 "of_tasks": args.tasks, "schedule": "proportional", "gradient": "sum",
                                 "task_weights": "fixed", "run_dir": folder,
                                 "filepath": os.path.join(folder, "best.pt"),
                                 "of_run": args.run_dir, "resume": args.resume and begun})


def test_multitask(args):
    """Score the dev sets and write the prediction files with args.filepath; return {task: dev metric}.

    After --per_task_epochs each task's predictions come from its own model.
    """
    args = complete(args)
    device = get_device(args.use_gpu)
    scores = {}
    for own in [of_task(args, task) for task in args.tasks] if args.per_task_epochs else [args]:
        saved = load_checkpoint(own.filepath)
        own = with_stored(own, saved, ("tasks", "pretrained", "max_length", "truncation"))
        # How to predict is a matter of now, where the command line says it; all else is the model's.
        said = {name: value for name, value in getattr(own, "given", {}).items() if name == "pair_order"}
        with restoring(own.filepath):
            model = MultitaskBERT({**saved["model_config"], **said})
            load_weights(model, saved)
        check_tokenizer(own, model.to(device))
        print(f"load model from {own.filepath}")
        loaders_of = multitask_loaders
        if are_fixed(model):
            loaders_of = partial(frozen_loaders, model, device)
        else:
            use_faster_modules(model, device, compile=own.compile, attention_backend=own.attention_backend,
                               precision=own.precision)
        with autocast(device, own.precision):
            scores.update(evaluation.test_model_multitask(own, model, device, loaders_of))
    print("\ntask      dev score")
    for task, score in scores.items():
        print(f"{task:9s} {score:9.3f}")
    if len(scores) == len(COURSE_TASKS):
        print(f"{'overall':9s} {overall_score(scores):9.3f}")
    return scores


test_model = test_multitask  # its name in the 2023 edition


def get_parser():
    """Return the script's argument parser; its defaults are for bert-base-uncased, and not measured here.

    They are the row "LeakyReLU, batch 32, dropout .1, lr 7e-6" of Peng, Yuan and Wang (2024), dev overall
    .782, with pairs cross-encoded as by Le and Lin (2024), .790.
    """
    parser = ArgumentParser(description=__doc__.splitlines()[0], epilog="@FILE reads flags from FILE; see recipes/")
    add_arguments(parser, LEARNING_RATES)
    parser.set_defaults(option="finetune", batch_size=32, hidden_dropout_prob=0.1)
    for task in COURSE_TASKS:
        for split in ("train", "dev", "test"):
            parser.add_argument(f"--{task}_{split}", type=path_name, metavar="PATH",
                                help=f"the {task} {split} file")
        for split in ("dev", "test"):
            parser.add_argument(f"--{task}_{split}_out", type=path_name, metavar="PATH",
                                help=f"where {task} {split} predictions go")
    parser.add_argument("--data_dir", type=path_name, default="data",
                        help="folder of the nine data files not named by a flag")
    parser.add_argument("--predictions_dir", type=path_name, default="predictions",
                        help="likewise of the six prediction files")
    parser.add_argument("--tasks", nargs="+", choices=COURSE_TASKS, default=COURSE_TASKS,
                        help="what to train and predict")
    parser.add_argument("--train_rows", type=rows_or_share, metavar="N|P%",
                        help="train on N random rows of each task, or on P percent of them")
    parser.add_argument("--init", metavar="FILE", help="begin with the weights of this checkpoint of an equal model")
    parser.add_argument("--per_task_epochs", type=number(int, 1), metavar="N",
                        help="afterwards fine-tune a copy of the model for each task; predictions come from its own")
    add_technique_arguments(parser)
    parser.add_argument("--demo", action="store_true",
                        help="the packaged MiniLM on data/sample, by recipes/minilm.args unless another is named")
    return parser


def complete(args):
    """Return `args` with every argument of ours that it lacks: defaults, file names, pooling by task."""
    args = with_defaults(args, get_parser())
    resolve_techniques(args)
    args.tasks = [task for task in COURSE_TASKS if task in args.tasks]
    for task in COURSE_TASKS:
        for split, file_split in (("train", "train"), ("dev", "dev"), ("test", "test-student")):
            if getattr(args, f"{task}_{split}") is None:
                setattr(args, f"{task}_{split}", os.path.join(args.data_dir, FILES[task].format(file_split)))
        for split in ("dev", "test"):
            if getattr(args, f"{task}_{split}_out") is None:
                setattr(args, f"{task}_{split}_out",
                        os.path.join(args.predictions_dir, f"{task}-{split}-output.csv"))
    return with_run_dir(args, f"multitask-{args.option}")


def get_args(argv=None):
    """Parse the command line; --demo stands for flags of its own, which explicit ones override."""
    argv = sys.argv[1:] if argv is None else argv
    if get_parser().parse_args(argv).demo:
        # A few hundred rows need more and smaller steps than the recipe's data.
        recipe = ["@" + os.path.join(ROOT, "recipes", "minilm.args"), "--epochs", "4", "--batch_size", "16"]
        if any(arg.startswith("@") for arg in argv):
            recipe = []
        argv = [*recipe, "--pretrained", "minilm", "--data_dir", os.path.join(ROOT, "data/sample"),
                "--predictions_dir", os.path.join("predictions", "demo"),
                "--run_dir", os.path.join("runs", "demo"), *argv]
    return parse(get_parser(), complete, argv, contradictions)


def main():
    """Train, then predict with the best checkpoint, unless --skip_predictions."""
    args = get_args()
    distributed.start(args.use_gpu)
    note_weights(args)
    predicted = [] if args.skip_predictions else args.tasks
    tests = [getattr(args, f"{task}_test") for task in predicted]
    inputs = [getattr(args, f"{task}_{split}") for task in args.tasks for split in ("train", "dev")] + tests
    require_files(inputs)
    require_outputs(args, inputs, [getattr(args, f"{task}_{split}_out") for task in predicted
                                   for split in ("dev", "test")])
    if args.use_gpu:
        get_device(True)  # raises without one
    for task, form in zip(COURSE_TASKS, FORMATS, strict=True):  # training reads the other files before its first step
        if task in predicted:
            read_sound(getattr(args, f"{task}_test"), form, labelled=False, skip_bad_rows=args.skip_bad_rows)
    train_multitask(args)
    if args.per_task_epochs:
        fine_tune_each(args)
    if predicted:
        test_multitask(args)
    distributed.stop()


if __name__ == "__main__":
    run_script(main)
