"""Logits to scores and prediction files.

Results go by task, {task: Result}. The functions named `model_*` and `test_model_*` are the course's: they take its
loaders and any model with the three `predict_*` methods, and those that return results return tuples.
"""

import itertools
import os
from typing import NamedTuple

import torch
from sklearn.metrics import f1_score
from tqdm import tqdm

from datasets import dataset_of, read_tasks
from engine import distributed
from engine.batching import bucket_loader, scoring_size
from files.predictions import hand_in
from tasks import COURSE_TASKS, TASKS, accuracy, in_order, overall_score

# What a model reads of a batch: texts or packed pairs; pairs apart, as the contract has them; features.
SEQUENCE = ("token_ids", "attention_mask")
APART = ("token_ids_1", "attention_mask_1", "token_ids_2", "attention_mask_2")
INPUTS = (*SEQUENCE, "token_type_ids", *APART, "features")


class Result(NamedTuple):
    """What a model makes of a task's rows, in the order of their loader."""

    score: float | None  # the task's metric; None of rows without labels
    predictions: list
    labels: list  # empty of rows without labels, as `sents` of pairs
    sents: list
    sent_ids: list


@torch.no_grad()
def collect(loader, model, logits_of):
    """Run `logits_of(batch)` over a loader in evaluation mode; return (logits, labels, sents, sent_ids).

    Logits are one CPU tensor; labels and sents are empty lists where the batches have none. Of several processes
    each scores its share of the batches, which must be the same in all of them, and gets the results of all.
    """
    model.eval()
    logits, rows = [], []
    hidden = None if distributed.is_main() else True  # None: shown on a terminal only
    progress = tqdm(loader, desc="scoring", leave=False, disable=hidden)
    for batch in itertools.islice(progress, distributed.rank(), None, distributed.world_size()):
        logits.append(logits_of(batch).float())
        labels = batch["labels"].flatten().tolist() if "labels" in batch else []
        rows.append((labels, batch.get("sents", []), batch["sent_ids"]))
    # Only here does the host wait for the device.
    logits = torch.cat(logits).cpu() if logits else torch.empty(0)

    shares = [list(zip(logits.split([len(sent_ids) for *_, sent_ids in rows]), rows, strict=True))
              for logits, rows in distributed.gather((logits, rows))]
    batches = [batch for turn in itertools.zip_longest(*shares) for batch in turn if batch is not None]
    labels, sents, sent_ids = ([value for _, row in batches for value in row[i]] for i in range(3))
    return torch.cat([logits for logits, _ in batches]) if batches else torch.empty(0), labels, sents, sent_ids


def predict(task, loader, model, device):
    """As `collect`, with the task's logits, (N, K) of classes or (N,), of texts or of their features.

    The contract's batches go through the contract's method, which a student's model may have overridden.
    """
    names = APART if TASKS[task].is_pair else SEQUENCE

    def logits_of(batch):
        inputs = {name: batch[name].to(device, non_blocking=True) for name in INPUTS if name in batch}
        if inputs.keys() != set(names) or not hasattr(model, TASKS[task].method):
            return model.predict(task, inputs)  # features, packed pairs, tasks beyond the course's
        logits = getattr(model, TASKS[task].method)(*(inputs[name] for name in names))
        return logits.flatten() if TASKS[task].outputs == 1 else logits

    return collect(loader, model, logits_of)


def evaluate_tasks(loaders, model, device):
    """Return {task: Result} of {task: loader}."""
    results = {}
    for task, loader in loaders.items():
        logits, labels, sents, sent_ids = predict(task, loader, model, device)
        predictions = TASKS[task].decide(logits)
        score = TASKS[task].metric(predictions, labels) if labels else None
        results[task] = Result(score, predictions, labels, sents, sent_ids)
    return results


def scores_text(scores):
    """Return {task: metric} as one line, with the overall score where all of the course's tasks are there."""
    text = ", ".join(f"{task} {score:.3f}" for task, score in scores.items())
    return f"{text}, overall {overall_score(scores):.3f}" if set(COURSE_TASKS) <= set(scores) else text


def print_scores(scores):
    """Print {task: metric} as a table, with the overall score where all of the course's tasks are there."""
    overall = {"overall": overall_score(scores)} if set(COURSE_TASKS) <= set(scores) else {}
    print("\ntask      dev score")
    for name, score in {**scores, **overall}.items():
        print(f"{name:9s} {score:9.3f}")


def scores_of(results):
    """Return {task: metric} of {task: Result}."""
    return {task: result.score for task, result in results.items()}


def sentiment_scores(logits, labels, sents, sent_ids):
    """Return (acc, f1, y_pred, y_true, sents, sent_ids) of logits (N, K); f1 is the macro average."""
    y_pred = TASKS["sst"].decide(logits)
    f1 = float(f1_score(labels, y_pred, average="macro"))
    return accuracy(y_pred, labels), f1, y_pred, labels, sents, sent_ids


def model_eval_sst(dataloader, model, device):
    """Return (acc, f1, y_pred, y_true, sents, sent_ids) on labelled sentences; f1 is the macro average."""
    return sentiment_scores(*predict("sst", dataloader, model, device))


def course_results(dataloaders, model, device):
    """Return the Results of sst, para and sts, a list; empty ones where a loader is None.

    MINBERT_EDITION=2023 gives the 2023 edition's order, paraphrase first.
    """
    loaders = dict(zip(COURSE_TASKS, dataloaders, strict=True))
    results = evaluate_tasks({task: loader for task, loader in loaders.items() if loader is not None}, model, device)
    order = ("para", "sst", "sts") if os.environ.get("MINBERT_EDITION") == "2023" else COURSE_TASKS
    return [results.get(task, Result(None, [], [], [], [])) for task in order]


def model_eval_multitask(sentiment_dataloader, paraphrase_dataloader, sts_dataloader, model, device):
    """Return sst, para, sts × (metric, predictions, ids) on labelled data, in the loaders' order.

    The metrics are accuracy, accuracy and Pearson correlation; a loader of None gives (None, [], []).
    """
    results = course_results((sentiment_dataloader, paraphrase_dataloader, sts_dataloader), model, device)
    return tuple(part for result in results for part in (result.score, result.predictions, result.sent_ids))


def model_eval_test_multitask(sentiment_dataloader, paraphrase_dataloader, sts_dataloader, model, device):
    """Return sst, para, sts × (predictions, ids) on unlabelled data; a loader of None gives ([], [])."""
    results = course_results((sentiment_dataloader, paraphrase_dataloader, sts_dataloader), model, device)
    return tuple(part for result in results for part in (result.predictions, result.sent_ids))


def multitask_loaders(files, split, args, *, skip_bad_rows=False, on_gpu=False, pair_encoding="bi"):
    """Return {task: loader} of one split from {task: path}, longest batch first, in the order of the table.

    `args` may have what the data sets read: `pretrained`, `max_length` and `truncation`. Batches of pairs are as
    `batching.Batches` has them for `pair_encoding`, one for all tasks or {task: one}; "bi" is the contract's.
    """
    encodings = pair_encoding if isinstance(pair_encoding, dict) else dict.fromkeys(files, pair_encoding)
    return {task: bucket_loader(dataset_of(task, rows, args, labelled=split != "test"), *scoring_size(on_gpu),
                                pair_encoding=encodings.get(task), pin_memory=on_gpu)
            for task, rows in read_tasks(files, split, skip_bad_rows).items()}


def test_model_multitask(args, model, device, features_of=None):
    """Score the dev sets and write the prediction files that `args` names; return {task: dev metric}.

    `features_of`, where an encoder is frozen, turns {task: loader} into the loaders of its features.
    """
    # A model of the course's takes the contract's batches.
    pair_encoding = model.pair_encoding if hasattr(model, "pair_encoding") else "bi"
    files, tasks = [], in_order(getattr(args, "tasks", COURSE_TASKS))
    for split in ("dev", "test"):
        loaders = multitask_loaders({task: getattr(args, f"{task}_{split}") for task in tasks}, split, args,
                                    skip_bad_rows=getattr(args, "skip_bad_rows", False),
                                    on_gpu=getattr(args, "use_gpu", False), pair_encoding=pair_encoding)
        loaders = features_of(loaders) if features_of else loaders
        for task, result in evaluate_tasks(loaders, model, device).items():
            ids = [row[-1] for row in loaders[task].dataset.dataset]  # in the order of the file
            files.append((task, split, getattr(args, f"{task}_{split}_out"), ids, result))

    for task, _, path, ids, result in files if distributed.is_main() else ():
        by_id = dict(zip(result.sent_ids, result.predictions, strict=True))
        hand_in(path, TASKS[task].header, ids, by_id, getattr(args, "pretrained", "bert-base-uncased"))
    return {task: result.score for task, split, *_, result in files if split == "dev"}
