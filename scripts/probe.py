"""Look into an encoder: what each layer knows, what tuning changed, where heads look, and which heads matter.

    python -m scripts.probe runs/multitask-finetune/best.pt --data_dir data --out runs/probe
    python -m scripts.probe --pretrained minilm --data_dir data --rows 1000 --out runs/probe

Prints tables of the dev scores of linear probes on the mean of every layer's hidden states; linear CKA between the
layers before and after tuning; the entropy of every head's attention in nats; every head's importance, and the dev
score with the least important heads pruned. Without a checkpoint they are those of the pretrained weights, and the last
two, which need a head, are left out. The folder OUT gets table.md, results.json and, where matplotlib is installed,
picture.png. --rows many random rows of each training file and of each dev file are read.
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from bert import BertModel
from classifier import BertSentimentClassifier
from datasets import dataset_of, low_shot
from engine.batching import bucket_loader
from engine.checkpoint import load_checkpoint, load_weights, restoring, with_stored
from engine.losses import total_loss
from engine.parser import number, path_name
from engine.step import to_device
from evaluation import evaluate_tasks, scores_of
from extensions import TASK_LOSSES
from extensions.encoder import takes_task
from extensions.heads.pooling import hidden_states_of, mean_of
from files.errors import Parser, UserError, run_script
from files.tables import require_files
from files.writing import atomic_write
from multitask_classifier import MultitaskBERT
from scripts._analysis import (
    attentions_of,
    gated_heads,
    head_entropies,
    head_importance,
    kept_heads,
    linear_cka,
    probe_accuracy,
    probe_correlation,
    pruning_order,
    sum_over_tokens,
)
from scripts._probe_report import picture, tables
from tasks import COURSE_TASKS, TASKS, in_order, overall_score, read_rows
from utils import get_device

SHARES = [step / 10 for step in range(10)]  # of the heads, pruned


def load(args):
    """Return (BERT as it was pretrained, the checkpoint's model or None, its arguments)."""
    if args.checkpoint is None:
        stored = SimpleNamespace(pretrained=args.pretrained or "bert-base-uncased", max_length=512, truncation="head")
        return BertModel.from_pretrained(stored.pretrained).eval(), None, stored
    saved = load_checkpoint(args.checkpoint)
    names = ("pretrained", "max_length", "truncation", "loss", "tasks", "data_set")
    stored = with_stored(argparse.Namespace(pretrained="bert-base-uncased", max_length=512, truncation="head"),
                         saved, names)
    stored.pretrained = args.pretrained or stored.pretrained
    with restoring(args.checkpoint):
        kind = BertSentimentClassifier if "classifier.weight" in saved["model"] else MultitaskBERT
        model = kind(saved["model_config"])
        load_weights(model, saved)
    return BertModel.from_pretrained(stored.pretrained).eval(), model.eval(), stored


def rows_of(path, task, args):
    """Return a data set of --rows random rows of a file of `task`."""
    return dataset_of(task, low_shot(read_rows(path, TASKS[task].form), args.rows, args.seed), args.stored)


def files_of(args, task):
    """Return the training and the dev file of a task."""
    return [Path(TASKS[task].data_file(args.data_dir, split)) for split in ("train", "dev")]


@torch.no_grad()
def encode(bert, dataset, task, device, watch=True):
    """Return (the mean hidden states of the embeddings and every layer, (L + 1, N, C), entropies (L, H), labels (N,)).

    Pairs are one sequence each; an entropy is the mean over all real tokens. Without `watch` there are none.
    """
    bert.to(device).eval()
    loader, options = bucket_loader(dataset), {"task": task} if takes_task(bert) else {}
    means, labels, sums, tokens = [], [], [], 0
    for batch in loader:
        labels.append(batch["labels"])
        inputs = [batch[name].to(device) for name in ("token_ids", "attention_mask", "token_type_ids") if name in batch]
        with hidden_states_of(bert) as states, head_entropies(bert) if watch else nullcontext([]) as found:
            bert(*inputs, **options)
        means.append(torch.stack([mean_of(state, inputs[1]) for state in states]).cpu())  # (L + 1, B, C)
        texts = [values[..., getattr(bert, "prepended", 0):] for values in found]  # without a prompt's entropies
        layers = [sum_over_tokens(values, inputs[1]).cpu() for values in texts]
        sums = [a + b for a, b in zip(sums or [0] * len(layers), layers, strict=True)]
        tokens += int(batch["attention_mask"].sum())
    return torch.cat(means, dim=1), [(each / tokens).tolist() for each in sums], torch.cat(labels)


def probes(bert, data, device):
    """Return ({task: a score for each layer}, hidden states of all dev rows, entropies averaged over tasks)."""
    scores, states, entropies = {}, [], []
    for task, (train, dev) in data.items():
        x, _, labels = encode(bert, train, task, device, watch=False)
        dev_x, found, dev_labels = encode(bert, dev, task, device)
        score = probe_correlation if TASKS[task].kind == "real" else probe_accuracy
        scores[task] = [score(a.numpy(), labels.numpy(), b.numpy(), dev_labels.numpy())
                        for a, b in zip(x, dev_x, strict=True)]
        states.append(dev_x)
        entropies.append(found)
    return scores, torch.cat(states, dim=1), [np.mean(layer, axis=0).tolist() for layer in zip(*entropies, strict=True)]


def losses_of(model, stored):
    """Return {task: loss} of a checkpoint: those that it was trained with."""
    if isinstance(model, BertSentimentClassifier):
        return {getattr(stored, "data_set", "sst" if model.num_labels == 5 else "cfimdb"): TASK_LOSSES["ce"]}
    named = getattr(stored, "loss", None) or {}
    return {task: total_loss(named.get(task) or [TASKS[task].loss]) for task in getattr(stored, "tasks", COURSE_TASKS)}


def loaders_of(model, data, split):
    """Return {task: loader} with pairs as the model takes them; split is 0 for training rows, 1 for dev rows."""
    return {task: bucket_loader(sets[split], 32, pair_encoding=model.pair_encoding.get(task, "cross"))
            for task, sets in data.items()}


def dev_score(model, loaders, device):
    """Return the dev score that chooses checkpoints, and {task: metric}."""
    scores = scores_of(evaluate_tasks(loaders, model, device))
    return overall_score(scores), scores


def prune(model, data, losses, device):
    """Return (importance of each layer's heads, a list of {share, heads, score, task: metric}): pruned in its order."""
    model.to(device)
    by_task = []
    for task, loader in loaders_of(model, data, 0).items():
        batches = (to_device(batch, device) for batch in loader)
        by_task.append(head_importance(model, task, batches, losses[task]))
    importance = [sum(layer) for layer in zip(*by_task, strict=True)]
    order, loaders, results = pruning_order(importance), loaders_of(model, data, 1), []
    for share in SHARES:
        gates = kept_heads(order, share)
        with gated_heads(model.bert, lambda index, output, gates=gates: gates[index].to(output)):
            score, scores = dev_score(model, loaders, device)
        closed = sum(int((layer == 0).sum()) for layer in gates)
        results.append({"share": share, "heads": closed, "score": score, **scores})
    return [layer.tolist() for layer in importance], results


def get_args(argv=None):
    """Return the parsed command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="of either training script (default: the pretrained weights)")
    parser.add_argument("--pretrained", type=path_name,
                        help="the weights before tuning (default: those that the checkpoint began with)")
    parser.add_argument("--data_dir", type=path_name, default="data", help="folder of the course's files")
    parser.add_argument("--rows", type=number(int, 10), default=1000, metavar="N",
                        help="rows of a file (default: 1000)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=COURSE_TASKS, help="what to probe for")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the choice of rows")
    parser.add_argument("--use_gpu", action="store_true", help="compute on CUDA, or else on Apple's MPS")
    parser.add_argument("--out", type=Path, default=Path("runs/probe"), help="folder of the results")
    return parser.parse_args(argv)


def main(argv=None):
    """Write and print the tables."""
    args = get_args(argv)
    device = get_device(args.use_gpu)
    require_files(str(path) for task in args.tasks for path in files_of(args, task))
    before, model, args.stored = load(args)
    losses = losses_of(model, args.stored) if model else {}
    require_files(str(path) for task in losses for path in files_of(args, task))
    data = {task: [rows_of(str(path), task, args) for path in files_of(args, task)]
            for task in dict.fromkeys([*args.tasks, *losses])}
    probed = {task: data[task] for task in in_order(args.tasks)}
    if any(len(set(train.labels(train.dataset).tolist())) < 2 for train, _ in probed.values()):
        raise UserError("the rows of a task have all the same label: nothing to probe for; give more --rows")

    results = {"rows": f"{args.rows} rows of a file at most", "probes": {}, "entropy": {}}
    results["probes"]["pretrained"], states, results["entropy"]["pretrained"] = probes(before, probed, device)
    after = states
    if model:
        results["probes"]["tuned"], after, results["entropy"]["tuned"] = probes(model.bert, probed, device)
    results["cka"] = [[linear_cka(x, y) for y in after] for x in states]
    if model and attentions_of(model.bert):
        results["importance"], results["pruned"] = prune(model, {task: data[task] for task in losses}, losses, device)
    results = {**results, "checkpoint": args.checkpoint, "pretrained": args.stored.pretrained, "seed": args.seed}
    with atomic_write(args.out / "results.json") as file:
        json.dump(results, file, indent=2)
        file.write("\n")
    with atomic_write(args.out / "table.md") as file:
        file.write(tables(results))
    print("\n" + tables(results))
    picture(results, args.out / "picture.png")


if __name__ == "__main__":
    run_script(main)
