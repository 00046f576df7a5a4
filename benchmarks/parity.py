"""Train by the multitask recipe twice, here and with transformers, and compare the losses step by step.

    python -m benchmarks.parity [--data DIR] [--steps 50]

Our side is what `multitask_classifier.py @recipes/minilm.args` runs: its readers, loaders, packing, MultitaskBERT, task
losses, AdamW, schedules and training step, in fp32, without dropout or penalties and with one learning rate for all
layers, whatever the recipe says of these. The other side takes from it only which rows stand in which batch, the texts
and labels of these rows, and the heads' initial weights. It has transformers' BertModel and BertTokenizer, which packs
the pairs, plain torch heads, decay groups chosen by name as transformers' own recipes do, torch's clipping, and AdamW
by the paper's formula, written out because torch.optim.AdamW treats eps and decay in another way.
"""

import json
import os
from itertools import count, islice
from pathlib import Path

import torch

from engine.choices import ROOT
from engine.loop import optimizer_settings, step_settings
from engine.step import lr_factor, make_optimizer, make_step, part_to_device, set_learning_rates
from extensions import SCHEDULES, TASK_LOSSES
from extensions.specs import from_spec
from files.errors import Parser, run_script
from files.pretrained import CONFIG_NAME, pretrained_file
from multitask_classifier import MultitaskBERT, get_args, training_loaders
from tasks import COURSE_TASKS, TASKS
from tests.helpers.oracle import run_oracle
from utils import seed_everything

TOLERANCE = 1e-4

# `task_heads` {task: weights of head[1] and head[4]}, `steps` [(task, texts, second texts or None, labels)] and the
# recipe's numbers are given to this code.
ORACLE = """
import math
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, leaky_relu, linear, mse_loss
from transformers import BertModel, BertTokenizer

torch.set_num_threads(threads)
bert = BertModel.from_pretrained(pretrained, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                                 attn_implementation="eager").train()
tokenizer = BertTokenizer.from_pretrained(pretrained)
heads = {task: [nn.Parameter(weight) for weight in weights] for task, weights in task_heads.items()}
decayed = [p for name, p in bert.named_parameters() if not name.endswith(("bias", "LayerNorm.weight"))]
decayed += [p for head in heads.values() for p in head[0::2]]
plain = [p for name, p in bert.named_parameters() if name.endswith(("bias", "LayerNorm.weight"))]
plain += [p for head in heads.values() for p in head[1::2]]
state = {p: {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)} for p in decayed + plain}

def pool(output, mask, name):
    if name == "pooler":
        return output.pooler_output
    lengths = mask.sum(1) if name == "mean" else [1] * len(mask)
    return torch.stack([rows[:n].mean(dim=0) for rows, n in zip(output.last_hidden_state, lengths)])

def loss_of(task, texts, second_texts, labels):
    inputs = tokenizer(texts, second_texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    w1, b1, w2, b2 = heads[task]
    features = pool(bert(**inputs), inputs["attention_mask"], pooling[task])
    logits = linear(leaky_relu(linear(features, w1, b1)), w2, b2)
    if task == "sst":
        return cross_entropy(logits, torch.tensor(labels))
    loss = binary_cross_entropy_with_logits if task == "para" else mse_loss
    return loss(logits[:, 0], torch.tensor(labels, dtype=torch.float32))

@torch.no_grad()
def adamw(p, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-6):
    s = state[p]
    s["t"] += 1
    s["m"] = beta1 * s["m"] + (1 - beta1) * p.grad
    s["v"] = beta2 * s["v"] + (1 - beta2) * p.grad ** 2
    alpha = lr * math.sqrt(1 - beta2 ** s["t"]) / (1 - beta1 ** s["t"])
    p -= alpha * s["m"] / (s["v"].sqrt() + eps)
    p -= lr * weight_decay * p

result = []
warmup_steps = math.ceil(warmup * len(steps))
for i, step in enumerate(steps):
    loss = loss_of(*step)
    result.append(loss.item())
    for p in state:
        p.grad = None
    loss.backward()
    nn.utils.clip_grad_norm_(list(state), max_grad_norm)
    rate = lr * ((i + 1) / warmup_steps if i < warmup_steps else (len(steps) - i) / (len(steps) - warmup_steps))
    for p in state:
        if p.grad is not None:
            adamw(p, rate, weight_decay if any(p is q for q in decayed) else 0.0)
"""


def our_losses(args, steps):
    """Train for `steps` steps by the project's own path.

    Returns ([(task, loss)] of the steps, [(task, texts, second texts, labels)] of the steps, {task: head's weights at
    the start}).
    """
    seed_everything(args.seed)
    model = MultitaskBERT(args)
    initial = {task: [p.detach().clone() for p in getattr(model, TASKS[task].head).parameters()]
               for task in COURSE_TASKS}
    loaders = training_loaders(args)
    rows = {task: {row[-1]: row for row in loader.dataset.dataset} for task, loader in loaders.items()}
    losses, seen = [], []

    def recorded(task):
        def loss_of(forward):
            loss = from_spec(TASKS[task].loss, TASK_LOSSES)(forward)
            losses.append((task, loss.item()))
            ids = forward.batch["sent_ids"]
            columns = [list(column) for column in zip(*(rows[task][i] for i in ids), strict=True)]
            seen.append((task, columns[0], columns[1] if TASKS[task].is_pair else None, columns[-2]))
            return loss
        return loss_of

    optimizer = make_optimizer(model, **optimizer_settings(args))
    schedule = SCHEDULES["proportional"](loaders, args.seed)
    epochs = map(schedule, count())  # as many as it takes
    batches = islice((epoch.part(i, 0, 1) for epoch in epochs for i in range(len(epoch))), steps)
    device = torch.device("cpu")
    step = make_step(model, {task: recorded(task) for task in loaders}, optimizer, device,
                     **step_settings(args))
    model.train()
    for i, parts in enumerate(batches):
        set_learning_rates(optimizer, lr_factor(i, steps, args.warmup))
        step([{task: part_to_device(part, device) for task, part in parts.items()}])
    return losses, seen, initial


def compare(data_dir, steps, *flags):
    """Return [(task, our loss, transformers' loss)] of `steps` steps on the files in `data_dir`; `flags` go last."""
    args = get_args(["@" + os.path.join(ROOT, "recipes", "minilm.args"), "--data_dir", str(data_dir), *flags,
                     "--hidden_dropout_prob", "0", "--encoder_dropout_prob", "0", "--param_groups", "no-decay",
                     "--penalty", "none", "--precision", "fp32"])
    losses, seen, heads = our_losses(args, steps)
    recipe = {name: getattr(args, name)
              for name in ("pooling", "max_length", "lr", "warmup", "weight_decay", "max_grad_norm")}
    folder = os.path.dirname(pretrained_file(args.pretrained, (CONFIG_NAME,)))
    theirs = run_oracle(ORACLE, task_heads=heads, steps=seen, pretrained=folder, threads=torch.get_num_threads(),
                        **recipe)
    return [(task, ours, other) for (task, ours), other in zip(losses, theirs, strict=True)]


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the course's files (default: data/, or data/sample/ without them)")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps (default: 50)")
    args = parser.parse_args()
    data = Path(args.data or os.path.join(ROOT, "data"))
    if args.data is None and not (data / "quora-train.csv").exists():
        data = data / "sample"

    losses = compare(data, args.steps)
    print(f"{'step':>4} {'task':<4} {'ours':>11} {'transformers':>12} {'difference':>11}")
    for step, (task, ours, theirs) in enumerate(losses, 1):
        print(f"{step:4d} {task:<4} {ours:11.7f} {theirs:12.7f} {ours - theirs:11.1e}")
    worst = max(abs(ours - theirs) for _, ours, theirs in losses)
    print(json.dumps({"benchmark": "parity", "steps": len(losses), "max_difference": worst,
                      "within_tolerance": worst <= TOLERANCE, "tolerance": TOLERANCE}))


if __name__ == "__main__":
    run_script(main)
