"""Measure the memory that fine-tuning bert-base takes in fp32 on the largest training batch.

    python -m benchmarks.memory [--use_gpu] [--rows N]

Two training steps on random weights: a small one, after which AdamW has its states, and one of rows
of 512 tokens, 16 of them unless told otherwise (MAX_TOKENS_TRAIN). On a GPU the peak is what PyTorch's allocator held;
on the CPU it is the peak of the process's memory, what the process held before the model included. The CPU's fused
attention has no dropout of its own, and without the fused kernel the weights of all heads are stored (192 MiB a layer,
several times), which CUDA's kernels never do. So attention's dropout is 0 on the CPU.
"""

import json
import time

import torch

from classifier import BertSentimentClassifier
from config import BertConfig
from engine.batching import MAX_TOKENS_TRAIN
from engine.cpu import peak_memory
from engine.step import TrainingStep, to_device
from extensions import PARAMETER_GROUPS, TASK_LOSSES
from extensions.schedules._steps import Part
from files.errors import Parser, run_script
from optimizer import AdamW
from utils import get_device

GIB = 2**30
TOKENS = 512


def batch(rows, tokens):
    """Return one step of random sentences: token_ids and attention_mask (rows, tokens), labels (rows,)."""
    token_ids = torch.randint(1000, 30000, (rows, tokens))
    return {"sst": {"token_ids": token_ids, "attention_mask": torch.ones_like(token_ids),
                    "labels": torch.randint(2, (rows,)), "sent_ids": [""] * rows}}


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--use_gpu", action="store_true", help="measure on the GPU")
    parser.add_argument("--rows", type=int, default=MAX_TOKENS_TRAIN // TOKENS, help="rows of the batch")
    args = parser.parse_args()
    device = get_device(args.use_gpu)
    before = peak_memory(device.type)

    architecture = BertConfig(attention_probs_dropout_prob=0.1 if args.use_gpu else 0.0).to_dict()
    model = BertSentimentClassifier({"num_labels": 2, "hidden_dropout_prob": 0.3, "bert_config": architecture})
    model = model.to(device)
    optimizer = AdamW(PARAMETER_GROUPS["no-decay"](model, 1e-5), lr=1e-5)
    start = time.monotonic()
    step = TrainingStep(model.train(), {"sst": TASK_LOSSES["ce"]}, optimizer, precision="fp32", device=device)
    for batches in (batch(1, 8), batch(args.rows, TOKENS)):
        losses = step([{task: Part(to_device(rows, device)) for task, rows in batches.items()}])
    float(losses["sst"])  # wait for the device
    seconds = time.monotonic() - start

    parameters = sum(p.numel() for p in model.parameters())
    states = 4 * 4 * parameters  # weights, gradients, two moments
    print(f"{'parameters':<46}{parameters / 1e6:8.1f} million")
    print(f"{'weights, gradients and AdamW states':<46}{states / GIB:8.2f} GiB")
    print(f"{'before the model':<46}{before / GIB:8.2f} GiB")
    print(f"{f'peak, {args.rows} rows of {TOKENS} tokens':<46}{peak_memory(device.type) / GIB:8.2f} GiB")
    print(f"{'both steps':<46}{seconds:8.1f} s")
    print(json.dumps({"benchmark": "memory", "device": device.type, "rows": args.rows, "tokens_a_row": TOKENS,
                      "peak_gib": round(peak_memory(device.type) / GIB, 2), "before_gib": round(before / GIB, 2),
                      "states_gib": round(states / GIB, 2)}))


if __name__ == "__main__":
    run_script(main)
