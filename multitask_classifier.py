"""Part 2: one BERT for sentiment (SST), paraphrase (Quora) and similarity (STS), trained together.

Legend of the shape comments:  B batch · T tokens · C hidden size · K classes
"""

import os
import sys
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn as nn

from datasets import dataset_of, low_shot, read_tasks
from engine import distributed
from engine.arguments import FIRST, RunArguments, add_arguments, as_run, completed, resolve, with_run_dir
from engine.batching import bucket_loader
from engine.checkpoint import begin_with, load_checkpoint, load_model, require_room, save_model, take_up, with_stored
from engine.checks import (
    contradictions,
    needs_heads,
    note_model,
    note_techniques,
    note_weights,
    prepare,
    require_embeddings,
)
from engine.choices import add_task_arguments, add_technique_arguments, name_files, resolve_techniques, with_demo
from engine.feature_cache import are_fixed, features_of, frozen_loaders
from engine.loop import SEEN_ROWS, fit, module_settings, optimizer_settings
from engine.losses import total_loss
from engine.model_config import EncoderModel, load_encoder, model_config, read_config
from engine.parser import ArgumentParser
from engine.progress import announce
from engine.step import autocast, make_optimizer, use_faster_modules
from evaluation import (
    collect,
    evaluate_tasks,
    multitask_loaders,
    print_scores,
    scores_of,
    scores_text,
    test_model_multitask,
)
from extensions import ENCODER_FLAGS, HEADS, OUTPUTS, PAIR_FEATURES, POOLING, SCHEDULES
from extensions.architecture.dropout_sites import set_dropout
from extensions.encoder import is_frozen, takes_task
from extensions.heads.heads import CosineHead, Relational
from extensions.heads.pairs import encode_apart, pack_pairs, swapped
from extensions.heads.pooling import hidden_states_of
from extensions.specs import build, from_spec, technique_of
from files.errors import UserError, run_script
from tasks import COURSE_TASKS, PREDICTED, TASKS, overall_score, read_sound, with_course_tasks
from utils import get_device, seed_everything

BERT_HIDDEN_SIZE = 768  # a name of the course; the encoder's own config tells its size
N_SENTIMENT_CLASSES = 5
LEARNING_RATES = {"pretrain": 1e-3, "finetune": 7e-6}
# The arguments that decide which parameters the model has, and what they compute.
ARCHITECTURE = ("hidden_dropout_prob", "encoder_dropout_prob", "option", "pretrained", "pooling", "heads", "outputs",
                "pair_encoding", "pair_score", "pair_order", *ENCODER_FLAGS, "max_length")


def for_each_task(tasks, value):
    """Return {task: value} of one value for all tasks, or of a dict by task as it is."""
    return value if isinstance(value, dict) else dict.fromkeys(tasks, value)


class MultitaskBERT(EncoderModel):
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
        self.tasks = with_course_tasks(self.config.tasks)
        self.bert = load_encoder(self.config)
        self.max_length = min(self.config.max_length, self.bert.config.max_position_embeddings)
        self.pair_order = self.config.pair_order
        pairs = [task for task in self.tasks if TASKS[task].is_pair]
        self.pair_encoding, self.pair_score = (
            for_each_task(pairs, choice) for choice in (self.config.pair_encoding, self.config.pair_score))
        pooling = for_each_task(self.tasks, self.config.pooling)
        self.pooling = nn.ModuleDict({task: build(spec, POOLING, self.bert) for task, spec in pooling.items()})
        # For all tasks alike: what --compile inductor has made of an encoder does not see hooks come and go.
        self.needs_layers = any(technique_of(spec, POOLING).needs_layers for spec in pooling.values())
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
                return CosineHead(*CosineHead.first[TASKS[task].kind](TASKS[task].form.maximum))
            width = PAIR_FEATURES[self.pair_score[task]].width
        spec = for_each_task(self.tasks, self.config.heads)[task]
        head = from_spec(spec, HEADS)(width * C, C, outputs, self.config.hidden_dropout_prob)
        if task in self.config.outputs:
            head[-1] = OUTPUTS[self.config.outputs[task]](head[-1].in_features, outputs)
        if TASKS[task].kind == "real":
            nn.init.constant_(head[-1].bias, TASKS[task].form.maximum / 2)  # the middle of the labels
        return head

    def head_of(self, task):
        """Return a task's head."""
        return self.get_submodule(TASKS[task].head)

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


def build_model(args):
    """Return (model, the configuration that a checkpoint keeps of it), with the weights to begin with."""
    config = model_config(args, ARCHITECTURE, num_labels=N_SENTIMENT_CLASSES, tasks=args.model_tasks)
    model = MultitaskBERT(config)
    require_embeddings(args.pretrained, model)
    problems = needs_heads(args.loss, args.tasks) if is_frozen(model.bert) else []
    if problems:
        raise UserError("; ".join(problems))
    config.hidden_size = model.bert.config.hidden_size
    set_dropout(model, args.dropout)
    if args.init and not (args.resume and take_up(model, args.run_dir)):
        begin_with(model, args.init, ARCHITECTURE)
    return model, config


def files_of(args, split):
    """Return {task: path} of a split's data files."""
    return {task: getattr(args, f"{task}_{split}") for task in args.tasks}


def training_loaders(args):
    """Return {task: loader} of the training files over the tasks in args.tasks."""
    rows = read_tasks(files_of(args, "train"), "train", args.skip_bad_rows)
    return {task: bucket_loader(dataset_of(task, low_shot(rows[task], args.train_rows, args.seed), args),
                                args.task_batch_size.get(task, args.batch_size), args.max_tokens, shuffle=True,
                                seed=args.seed + i, pair_encoding=args.pair_encoding.get(task), pin_memory=args.use_gpu)
            for i, task in enumerate(TASKS) if task in args.tasks}


def train_multitask(args):
    """Train on the tasks in args.tasks, save the weights with the best dev score to args.filepath; return that score.

    A sample of the training rows is scored too: its distance from dev shows how far a task is overfitted.
    """
    args = as_run(args, complete)
    seed_everything(args.seed)
    device = get_device(args.use_gpu)
    model, config = build_model(args)
    model = model.to(device)
    require_room(model, args.filepath, args.run_dir, args.save, args.ema, args.resume)
    note_model(args, model)

    loaders = training_loaders(args)
    dev_loaders = multitask_loaders(files_of(args, "dev"), "dev", args, skip_bad_rows=args.skip_bad_rows,
                                    on_gpu=args.use_gpu, pair_encoding=args.pair_encoding)
    if are_fixed(model, args.loss, args.penalty):
        with autocast(device, args.precision):
            loaders, dev_loaders = (frozen_loaders(each, model, device, collect) for each in (loaders, dev_loaders))
    schedule = build(args.schedule, SCHEDULES, loaders, args.seed, args.epochs)
    announce(schedule, args.loss, args.epochs)
    note_techniques(args, schedule.loaders)
    seen = {task: loader.sample(SEEN_ROWS, args.seed) for task, loader in loaders.items()}
    optimizer = make_optimizer(model, **optimizer_settings(args))

    def scores_on(split_loaders):
        return scores_of(evaluate_tasks(split_loaders, model, device))

    def score():
        dev = scores_on(dev_loaders)
        return overall_score(dev), scores_text(dev), {"dev": dev, "train": scores_on(seen)}

    losses = {task: total_loss(args.loss[task]) for task in loaders}
    save = partial(save_model, model, optimizer, args, config)
    return fit(model, schedule, losses, optimizer, score, save, device, args)


def for_one_task(args, task):
    """Return the arguments of one task's fine-tuning after the joint training, in a folder of its own.

    It is resumed only if it began from the shared weights as they are now.
    """
    folder = os.path.join(args.run_dir, task)
    last = os.path.join(folder, "last.pt")
    begun = os.path.exists(last) and os.path.getmtime(last) >= os.path.getmtime(args.filepath)
    return RunArguments(**{**vars(args), "tasks": [task], "epochs": args.per_task_epochs, "init": args.filepath,
                           "schedule": "proportional", "gradient": "sum", "task_weights": "fixed", "run_dir": folder,
                           "filepath": os.path.join(folder, "best.pt"), "of_run": args.run_dir,
                           "resume": args.resume and begun})


def fine_tune_each(args):
    """Fine-tune a copy of the model in args.filepath for each task; one that gets no better stays the shared one."""
    for task in args.tasks:
        train_multitask(for_one_task(args, task))


def test_multitask(args):
    """Score the dev sets and write the prediction files with args.filepath; return {task: dev metric}.

    After --per_task_epochs each task is predicted by its fine-tuned model, which is the shared one where fine-tuning
    did not raise the task's dev score.
    """
    args = as_run(args, complete)
    device = get_device(args.use_gpu)
    scores = {}
    for run in [for_one_task(args, task) for task in args.tasks] if args.per_task_epochs else [args]:
        saved = load_checkpoint(run.filepath)
        run = with_stored(run, saved, ("tasks", "pretrained", "max_length", "truncation"))
        # How to predict may be typed now; all else belongs to the model.
        typed = {name: value for name, value in run.given.items() if name == "pair_order"}
        model = load_model(MultitaskBERT, saved, run.filepath, device, **typed)
        require_embeddings(run.pretrained, model)
        as_features = partial(frozen_loaders, model=model, device=device, collect=collect) if are_fixed(model) else None
        if not as_features:
            use_faster_modules(model, device, **module_settings(run))
        with autocast(device, run.precision):
            scores.update(test_model_multitask(run, model, device, as_features))
    print_scores(scores)
    return scores


test_model = test_multitask  # its name in the 2023 edition


def get_parser():
    """Return the script's argument parser; its defaults are for bert-base-uncased, and not measured here.

    They are the row "LeakyReLU, batch 32, dropout .1, lr 7e-6" of Peng, Yuan and Wang (2024), dev overall
    .782, with pairs cross-encoded as by Le and Lin (2024), .790.
    """
    parser = ArgumentParser(__doc__.splitlines()[0], FIRST)
    add_arguments(parser, LEARNING_RATES)
    parser.set_defaults(option="finetune", batch_size=32, hidden_dropout_prob=0.1)
    add_task_arguments(parser)
    add_technique_arguments(parser)
    return parser


def complete(given):
    """Return RunArguments: {name: value} of what was typed, and all else that a run needs."""
    args = completed(given, get_parser())
    resolve_techniques(args)
    name_files(args)
    return with_run_dir(args, f"multitask-{args.option}")


def get_args(argv=None):
    """Return the checked arguments of a command line."""
    parser = get_parser()
    words = with_demo(parser, sys.argv[1:] if argv is None else argv)
    return resolve(parser.given(words), complete, contradictions)


def main():
    """Train, then predict with the best checkpoint, unless --skip_predictions."""
    args = get_args()
    distributed.start(args.use_gpu)
    note_weights(args.pretrained)
    predicted = [] if args.skip_predictions else args.tasks
    tests = {task: path for task, path in files_of(args, "test").items() if task in predicted}
    inputs = [path for task in args.tasks for path in (files_of(args, "train")[task], files_of(args, "dev")[task])]
    outputs = [getattr(args, f"{task}_{split}_out") for task in predicted for split in PREDICTED]
    prepare(args, [*inputs, *tests.values()], outputs)
    for task, path in tests.items():  # training reads the other files before its first step
        read_sound(path, TASKS[task].form, labelled=False, skip_bad_rows=args.skip_bad_rows)
    train_multitask(args)
    if args.per_task_epochs:
        fine_tune_each(args)
    if predicted:
        test_multitask(args)
    distributed.stop()


if __name__ == "__main__":
    run_script(main)
