"""Logits to scores and prediction files.

The functions named `model_*` are the course's: they take its loaders and any model with the three
`predict_*` methods, and return Python floats and lists.
"""

import itertools
import json
import os
import warnings

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from tqdm import tqdm

from config import read_json
from datasets import (
    SentenceClassificationDataset,
    SentenceClassificationTestDataset,
    SentencePairDataset,
    SentencePairTestDataset,
    load_multitask_data,
)
from engine import distributed
from engine.batching import bucket_loader, scoring_size
from files.errors import UserError
from files.writing import alone_in, atomic_write, is_device
from tasks import COURSE_TASKS

HEADERS = {
    "sst": "id \t Predicted_Sentiment \n",
    "para": "id \t Predicted_Is_Paraphrase \n",
    "sts": "id \t Predicted_Similiary \n",  # sic: the leaderboard has accepted exactly these bytes
}
WEIGHTS_RECORD = "weights.json"
# What a model is given of a batch of pairs.
PACKED = ("token_ids", "attention_mask", "token_type_ids")
APART = ("token_ids_1", "attention_mask_1", "token_ids_2", "attention_mask_2")


def pearson(predictions, labels):
    """Return the Pearson correlation of two lists; 0.0 with a warning where it is undefined."""
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        warnings.warn("similarity: one row, or constant predictions or labels, have no correlation: scored 0.0",
                      stacklevel=2)
        return 0.0
    return float(np.corrcoef(predictions, labels)[0, 1])


def overall_score(scores):
    """Return the leaderboard's mean of {task: metric}, in which a correlation counts as (r + 1) / 2."""
    return sum((score + 1) / 2 if task == "sts" else score for task, score in scores.items()) / len(scores)


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


def predict_sentiment(loader, model, device):
    """As `collect`, with the model's sentiment logits (N, 5), of texts or of their features."""
    def logits_of(batch):
        if "features" in batch:
            return model.predict("sst", {"features": batch["features"].to(device)})
        return model.predict_sentiment(*(batch[name].to(device, non_blocking=True)
                                         for name in ("token_ids", "attention_mask")))

    return collect(loader, model, logits_of)


def predict_pairs(loader, model, task, device):
    """As `collect`, with the logits (N,) of pairs for "para" or "sts": packed, the contract's, or features."""
    predict = {"para": model.predict_paraphrase, "sts": model.predict_similarity}[task]

    def logits_of(batch):
        names = next((names for names in (("features",), PACKED) if names[0] in batch), APART)
        inputs = {name: batch[name].to(device, non_blocking=True) for name in names}
        return (predict(*inputs.values()) if names is APART else model.predict(task, inputs)).flatten()

    return collect(loader, model, logits_of)


def to_classes(logits):
    """Return the most likely class of each row of logits (N, K), a list of ints."""
    return logits.argmax(dim=-1).tolist()


def to_paraphrase(logits):
    """Return 1.0 where the probability of a paraphrase is above a half, else 0.0."""
    return (logits > 0).float().tolist()


def sentiment_scores(logits, labels, sents, sent_ids):
    """Return (acc, f1, y_pred, y_true, sents, sent_ids); f1 is the macro average."""
    y_pred = to_classes(logits)
    f1 = float(f1_score(labels, y_pred, average="macro"))
    return accuracy(y_pred, labels), f1, y_pred, labels, sents, sent_ids


def model_eval_sst(dataloader, model, device):
    """Return (acc, f1, y_pred, y_true, sents, sent_ids) of `predict_sentiment` on labelled sentences."""
    return sentiment_scores(*predict_sentiment(dataloader, model, device))


def accuracy(predictions, labels):
    """Return the share of predictions that equal their labels."""
    return float(accuracy_score(labels, predictions))


def predict_tasks(sentiment_dataloader, paraphrase_dataloader, sts_dataloader, model, device):
    """Return (predictions, labels, ids) for sst, para and sts; three empty lists where a loader is None."""
    results = []
    for task, loader, decide in (
        ("sst", sentiment_dataloader, to_classes),
        ("para", paraphrase_dataloader, to_paraphrase),
        ("sts", sts_dataloader, torch.Tensor.tolist),
    ):
        if loader is None:
            results.append(([], [], []))
            continue
        logits, labels, _, sent_ids = (predict_sentiment(loader, model, device) if task == "sst"
                                       else predict_pairs(loader, model, task, device))
        results.append((decide(logits), labels, sent_ids))
    return results


def model_eval_multitask(sentiment_dataloader, paraphrase_dataloader, sts_dataloader, model, device):
    """Return sst, para, sts × (metric, predictions, ids) on labelled data, in the loaders' order.

    The metrics are accuracy, accuracy and Pearson correlation; a loader of None gives (None, [], []).
    """
    loaders = (sentiment_dataloader, paraphrase_dataloader, sts_dataloader)
    results = []
    for loader, metric, (predictions, labels, sent_ids) in zip(
            loaders, (accuracy, accuracy, pearson), predict_tasks(*loaders, model, device), strict=True):
        results += [None if loader is None else metric(predictions, labels), predictions, sent_ids]
    return tuple(results)


def model_eval_test_multitask(sentiment_dataloader, paraphrase_dataloader, sts_dataloader, model, device):
    """Return sst, para, sts × (predictions, ids) on unlabelled data; a loader of None gives ([], [])."""
    tasks = predict_tasks(sentiment_dataloader, paraphrase_dataloader, sts_dataloader, model, device)
    return tuple(part for predictions, _, sent_ids in tasks for part in (predictions, sent_ids))


def write_predictions(path, header, ids, predictions_by_id):
    """Write `{id} , {prediction} \\n` for every id, in the order of `ids`; the file is whole or not there."""
    with atomic_write(path) as file:
        file.write(header)
        file.writelines(f"{sent_id} , {predictions_by_id[sent_id]} \n" for sent_id in ids)


def records(paths):
    """Return where `record_weights` notes what it is told of prediction files, a list."""
    return list(dict.fromkeys(os.path.join(os.path.dirname(path), WEIGHTS_RECORD) for path in paths
                              if not is_device(path)))


def record_weights(path, pretrained):
    """Note in weights.json, beside a prediction file, which pretrained weights it came from.

    A damaged record is begun anew. Of two scripts that write there at once none loses what the other noted.
    """
    for record_path in records([path]):
        with alone_in(os.path.dirname(record_path) or "."):
            record = {}
            if os.path.exists(record_path):
                try:
                    record = read_json(record_path, "it is begun anew, and no longer tells what older files came from")
                except UserError as damage:
                    print(f"note: {damage}")
            record[os.path.basename(path)] = pretrained
            with atomic_write(record_path) as file:
                json.dump(record, file, indent=2, sort_keys=True)
                file.write("\n")


def multitask_loaders(args, split, pair_encoding=None):
    """Return ({task: loader}, {task: rows}) of one split over the tasks in `args.tasks`, longest batch first.

    Batches of pairs are as `batching.Batches` has them for `pair_encoding`, one for all tasks or {task: one}: by
    default as `args` says, else the contract's.
    """
    pair_encoding = pair_encoding or getattr(args, "pair_encoding", None) or "bi"
    encodings = pair_encoding if isinstance(pair_encoding, dict) else dict.fromkeys(COURSE_TASKS, pair_encoding)
    tasks = getattr(args, "tasks", COURSE_TASKS)
    files = [getattr(args, f"{task}_{split}") if task in tasks else None for task in COURSE_TASKS]
    sst, _, para, sts = load_multitask_data(*files, split=split, skip_bad_rows=getattr(args, "skip_bad_rows", False))
    if split == "test":
        datasets = {"sst": SentenceClassificationTestDataset(sst, args), "para": SentencePairTestDataset(para, args),
                    "sts": SentencePairTestDataset(sts, args)}
    else:
        datasets = {"sst": SentenceClassificationDataset(sst, args), "para": SentencePairDataset(para, args),
                    "sts": SentencePairDataset(sts, args, isRegression=True)}
    on_gpu = getattr(args, "use_gpu", False)
    loaders = {task: bucket_loader(datasets[task], *scoring_size(on_gpu), pair_encoding=encodings.get(task),
                                   pin_memory=on_gpu) for task in COURSE_TASKS if task in tasks}
    return loaders, {task: datasets[task].dataset for task in loaders}


def test_model_multitask(args, model, device, loaders_of=multitask_loaders):
    """Score the dev sets and write the six prediction files that `args` names; return {task: dev metric}.

    `loaders_of(args, split, pair_encoding)` is `multitask_loaders`, or returns as much of features.
    """
    # A model of the course's has its three methods alone, and they take the contract's batches.
    pair_encoding = model.config.pair_encoding if hasattr(model, "logits") else "bi"
    loaders, rows = loaders_of(args, "dev", pair_encoding)
    results = model_eval_multitask(*(loaders.get(task) for task in COURSE_TASKS), model, device)
    scores = {task: results[3 * i] for i, task in enumerate(COURSE_TASKS) if task in loaders}
    predictions = {task: dict(zip(results[3 * i + 2], results[3 * i + 1], strict=True))
                   for i, task in enumerate(COURSE_TASKS)}
    files = [(task, getattr(args, f"{task}_dev_out"), rows[task], predictions[task]) for task in loaders]

    loaders, rows = loaders_of(args, "test", pair_encoding)
    results = model_eval_test_multitask(*(loaders.get(task) for task in COURSE_TASKS), model, device)
    predictions = {task: dict(zip(results[2 * i + 1], results[2 * i], strict=True))
                   for i, task in enumerate(COURSE_TASKS)}
    files += [(task, getattr(args, f"{task}_test_out"), rows[task], predictions[task]) for task in loaders]

    for task, path, task_rows, predictions_by_id in files if distributed.is_main() else ():
        write_predictions(path, HEADERS[task], [row[-1] for row in task_rows], predictions_by_id)
        record_weights(path, getattr(args, "pretrained", "bert-base-uncased"))
        print(f"wrote {len(task_rows)} predictions to {path}")
    return scores
