"""Part 1: train BERT for sentiment on one data set, SST (5 classes) or CFIMDB (2), and write its predictions."""

import os
from functools import partial
from types import MappingProxyType

import torch
import torch.nn as nn

from datasets import SentenceClassificationDataset as SentimentDataset
from datasets import SentenceClassificationTestDataset as SentimentTestDataset
from datasets import require_labelled, require_labels
from engine import distributed
from engine.arguments import FIRST, add_arguments, as_run, completed, resolve, with_run_dir
from engine.batching import bucket_loader, scoring_size
from engine.checkpoint import load_checkpoint, load_model, require_room, save_model, with_stored
from engine.checks import note_model, note_weights, prepare, require_embeddings
from engine.feature_cache import are_fixed, features_of, frozen_loader
from engine.loop import SEEN_ROWS, fit, module_settings, optimizer_settings
from engine.losses import total_loss
from engine.model_config import EncoderModel, load_encoder, model_config, read_config
from engine.parser import ArgumentParser, path_name
from engine.run_folder import Run
from engine.step import autocast, make_optimizer, to_device, use_faster_modules
from evaluation import collect, sentiment_scores
from extensions import ENCODER_FLAGS, SCHEDULES
from extensions.encoder import takes_task
from extensions.specs import build
from files.errors import UserError, run_script
from files.predictions import hand_in
from files.tables import require_files
from tasks import CLASSIFIER_TASKS, PREDICTED, SENTIMENT, SPLITS, TASKS, read_rows
from utils import get_device, seed_everything

LEARNING_RATES = {"pretrain": 1e-3, "finetune": 1e-5}
# The arguments that decide which parameters the model has, and what they compute.
ARCHITECTURE = ("hidden_dropout_prob", "encoder_dropout_prob", "option", "pretrained", *ENCODER_FLAGS)


class BertSentimentClassifier(EncoderModel):
    """BERT, dropout and one linear layer over the pooler's output.

    `config` (a namespace, or a dict as loaded from a checkpoint) has `num_labels`, `hidden_dropout_prob`
    and `option`; "pretrain" freezes BERT, which then also runs without dropout.
    """

    # What engine/ reads of a model: the pooler is the encoder's own, and there are no pairs.
    pooling, pair_encoding, pair_order, needs_layers = MappingProxyType({}), MappingProxyType({}), "given", False

    def __init__(self, config):
        super().__init__()
        self.config = read_config(config)
        self.num_labels = self.config.num_labels
        self.bert = load_encoder(self.config)
        if takes_task(self.bert):
            raise UserError(f"--adapt {' '.join(self.config.adapt)}: what has a part for each task is for "
                            "multitask_classifier.py; leave it out here")
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.bert.config.hidden_size, self.num_labels)

    def encode(self, task, batch):
        """Return the pooled encoding of a batch on the model's device, or the features that it holds: [(B, C)]."""
        if "features" in batch:
            return features_of(batch)
        return [self.bert(batch["token_ids"], batch["attention_mask"])["pooler_output"]]

    def score(self, task, encodings):
        """Return the logits (B, num_labels) of encodings, in fp32 whatever the encoder ran in."""
        with torch.autocast(encodings[0].device.type, enabled=False):
            return self.classifier(self.dropout(encodings[0].float()))

    predict = EncoderModel.logits

    def forward(self, input_ids, attention_mask):
        """Return the logits (B, num_labels) of input_ids (B, T)."""
        return self.logits("sst", {"token_ids": input_ids, "attention_mask": attention_mask})


def load_data(filename, flag="train", skip_bad_rows=False):
    """Read a sentiment file: (rows, number of labels) when `flag` is "train", rows for "valid" and "test"."""
    rows = read_rows(filename, SENTIMENT, labelled=flag != "test", skip_bad_rows=skip_bad_rows)
    return (rows, len({row[1] for row in rows})) if flag == "train" else rows


def predictions(dataloader, model, device):
    """Return (logits (N, K), labels, sents, sent_ids) of a loader of texts, or of their features."""
    def logits_of(batch):
        batch = to_device(batch, device)
        return model.logits("sst", batch) if "features" in batch else model(batch["token_ids"], batch["attention_mask"])

    return collect(dataloader, model, logits_of)


def model_eval(dataloader, model, device):
    """Return (acc, f1, y_pred, y_true, sents, sent_ids) on labelled sentences; f1 is the macro average."""
    return sentiment_scores(*predictions(dataloader, model, device))


def model_test_eval(dataloader, model, device):
    """Return (y_pred, sents, sent_ids) on sentences without labels."""
    logits, _, sents, sent_ids = predictions(dataloader, model, device)
    return TASKS["sst"].decide(logits), sents, sent_ids


def files_of(args):
    """Return the files that a run reads."""
    return (args.train, args.dev) if args.skip_predictions else (args.train, args.dev, args.test)


def train(args):
    """Train on args.train, choose the epoch by accuracy on args.dev, save it to args.filepath; return that accuracy."""
    args = as_run(args, partial(completed, parser=get_parser()))
    seed_everything(args.seed)
    device = get_device(args.use_gpu)
    train_rows, num_labels = load_data(args.train, "train", args.skip_bad_rows)
    train_data = SentimentDataset(train_rows, args)
    dev_data = SentimentDataset(load_data(args.dev, "valid", args.skip_bad_rows), args)
    require_labels(args.train, args.dev, train_rows, dev_data.dataset)

    config = model_config(args, ARCHITECTURE, num_labels=num_labels)
    model = BertSentimentClassifier(config).to(device)
    require_embeddings(args.pretrained, model)
    config.hidden_size = model.bert.config.hidden_size
    require_room(model, args.filepath, args.run_dir, args.save, args.ema, args.resume)
    note_model(args, model)
    train_loader = bucket_loader(train_data, args.batch_size, args.max_tokens, shuffle=True, seed=args.seed)
    dev_loader = bucket_loader(dev_data, *scoring_size(args.use_gpu))
    if are_fixed(model, {}, args.penalty):
        with autocast(device, args.precision):
            train_loader, dev_loader = (frozen_loader(loader, model, device, "sst", collect)
                                        for loader in (train_loader, dev_loader))
    print(f"{args.train}: {train_loader.described()}")
    optimizer = make_optimizer(model, **optimizer_settings(args))
    seen = train_loader.sample(SEEN_ROWS, args.seed)

    def scores_on(loader):
        return dict(zip(("accuracy", "f1"), model_eval(loader, model, device), strict=False))

    def score():
        dev = scores_on(dev_loader)
        text = f"accuracy {dev['accuracy']:.3f}, macro F1 {dev['f1']:.3f}"
        return dev["accuracy"], text, {"dev": dev, "train": scores_on(seen)}

    schedule = build("proportional", SCHEDULES, {"sst": train_loader}, args.seed)
    return fit(model, schedule, {"sst": total_loss(["ce"])}, optimizer, score,
               partial(save_model, model, optimizer, args, config), device, args)


def test(args):
    """Load args.filepath and write its predictions for args.dev and args.test; return the dev accuracy."""
    args = as_run(args, partial(completed, parser=get_parser()))
    device = get_device(args.use_gpu)
    saved = load_checkpoint(args.filepath)
    args = with_stored(args, saved, ("pretrained", "max_length", "truncation"))
    model = load_model(BertSentimentClassifier, saved, args.filepath, device)
    require_embeddings(args.pretrained, model)
    rows = {args.dev_out: load_data(args.dev, "valid", args.skip_bad_rows),
            args.test_out: load_data(args.test, "test", args.skip_bad_rows)}
    loaders = [bucket_loader(data, *scoring_size(args.use_gpu)) for data in (
        SentimentDataset(rows[args.dev_out], args), SentimentTestDataset(rows[args.test_out], args))]
    with autocast(device, args.precision):
        if are_fixed(model):
            loaders = [frozen_loader(loader, model, device, "sst", collect) for loader in loaders]
        else:
            use_faster_modules(model, device, **module_settings(args))
        acc, _, dev_pred, _, _, dev_ids = model_eval(loaders[0], model, device)
        test_pred, _, test_ids = model_test_eval(loaders[1], model, device)
    files = ((args.dev_out, dev_pred, dev_ids), (args.test_out, test_pred, test_ids))
    for path, y_pred, ids in files if distributed.is_main() else ():
        hand_in(path, TASKS["sst"].header, [row[-1] for row in rows[path]], dict(zip(ids, y_pred, strict=True)),
                args.pretrained)
    print(f"dev accuracy {acc:.3f}")
    return acc


def get_parser():
    """Return the script's argument parser."""
    parser = ArgumentParser(__doc__, FIRST)
    add_arguments(parser, LEARNING_RATES)
    add = parser.add_argument_group("data and predictions").add_argument
    add("--dataset", choices=(*CLASSIFIER_TASKS, "all"), default="all", metavar="NAME",
        help="sst, cfimdb or all: what to train on; all trains on one after the other")
    add("--data_dir", type=path_name, default="data", metavar="DIR", help="folder of the course's files")
    add("--predictions_dir", type=path_name, default="predictions", metavar="DIR",
        help="folder of the prediction files")
    return parser


def complete(given, name="sst", apart=False):
    """Return RunArguments: {name: value} of what was typed, the files of `name`, and, with `apart`, its own folder."""
    args = completed(given, get_parser())
    args.data_set = name
    args.train, args.dev, args.test = (TASKS[name].data_file(args.data_dir, split) for split in SPLITS)
    prefix = args.fine_tune_mode or args.option
    args.dev_out, args.test_out = (
        os.path.join(args.predictions_dir, f"{prefix}-{name}-{split}-out.csv") for split in PREDICTED)
    if args.run_dir and apart:
        args.run_dir = os.path.join(args.run_dir, name)
    return with_run_dir(args, f"{args.option}-{name}")


def get_args(argv=None, name="sst", apart=False):
    """Return the checked arguments of a command line, for the data set `name`; `apart` is as in `complete`."""
    return resolve(get_parser().given(argv), partial(complete, name=name, apart=apart))


def data_sets(given):
    """Return (names of the data sets to train on, whether --run_dir has a folder for each) of what was typed.

    A folder that is one data set's run, as the message of an interrupted run names it, is resumed alone.
    """
    dataset, run_dir = given.get("dataset", "all"), given.get("run_dir")
    stored = Run(run_dir).stored_arguments()["args"] if given.get("resume") else {}
    if "data_set" in stored:
        if dataset not in (stored["data_set"], "all"):
            raise UserError(f"--dataset {dataset}: the run in {run_dir} is that of {stored['data_set']}; "
                            "leave the flag out, or name another --run_dir")
        return (stored["data_set"],), False
    return (CLASSIFIER_TASKS, True) if dataset == "all" else ((dataset,), False)


def main():
    """Train on each data set asked for and predict, unless --skip_predictions; print the dev accuracies."""
    parser = get_parser()
    given = parser.given()
    names, apart = data_sets(given)
    if "filepath" in given and given.get("dataset", "all") == "all":
        parser.error("--filepath names one checkpoint: give it with --dataset sst or --dataset cfimdb")
    distributed.start(given.get("use_gpu", False))
    runs = {name: resolve(given, partial(complete, name=name, apart=apart)) for name in names}
    note_weights(runs[names[0]].pretrained)
    require_files(path for run in runs.values() for path in files_of(run))
    for run in runs.values():
        prepare(run, files_of(run), () if run.skip_predictions else (run.dev_out, run.test_out))
    for run in runs.values():
        require_labelled(run.data_set, *files_of(run), skip_bad_rows=run.skip_bad_rows)
    accuracies = {}
    for name, run in runs.items():
        print(f"{name}: {run.option}")
        accuracies[name] = train(run)
        if not run.skip_predictions:
            accuracies[name] = test(run)
    for name, accuracy in accuracies.items():
        print(f"{runs[name].option} {name}: dev accuracy {accuracy:.3f}")
    distributed.stop()


if __name__ == "__main__":
    run_script(main)
