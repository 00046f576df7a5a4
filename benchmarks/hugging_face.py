"""Multitask fine-tuning with transformers at its best, a contender of `benchmarks.throughput`.

bf16 autocast where the processor has it, scaled_dot_product_attention, torch's fused AdamW, rows grouped by length
as transformers' Trainer groups them, tokenized before training by the Rust tokenizer on all cores. This file imports
nothing of the project and runs with `python -I`: transformers would take our datasets.py for Hugging Face's.
"""

import contextlib
import json
import os
import random
import runpy
import time

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import BertConfig, BertModel, BertTokenizerFast

LOGITS = {"sst": 5, "para": 1, "sts": 1}
MEGA_BATCH = 50  # batches that are sorted by length together, as in transformers' LengthGroupedSampler


class HuggingFace:
    """The contender: batches of rows of about equal length, padded to the longest."""

    def __init__(self, job):
        torch.manual_seed(job["seed"])
        self.device, self.bf16 = torch.device(job["device"]), job["bf16"]
        with open(job["rows"], encoding="utf-8") as file:
            rows = json.load(file)["rows"]
        self.labels = {task: [row[-1] for row in rows[task]] for task in rows}

        start = time.perf_counter()
        tokenizer = BertTokenizerFast(job["vocab"])
        self.encoded = {}
        for task, task_rows in rows.items():
            columns = [list(column) for column in zip(*task_rows)][:-1]
            self.encoded[task] = tokenizer(*columns, truncation=True, max_length=512)
        self.lengths = {task: [len(ids) for ids in encoded["input_ids"]] for task, encoded in self.encoded.items()}
        self.startup = {"tokenizing": time.perf_counter() - start}

        config = BertConfig(**job["architecture"], attn_implementation="sdpa")
        self.model = BertModel(config)
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.Dropout(0.1), nn.Linear(config.hidden_size, n))
                                    for task, n in LOGITS.items()})
        self.both = nn.ModuleList([self.model, self.heads]).to(self.device)
        self.optimizer = torch.optim.AdamW(self.both.parameters(), lr=1e-5, fused=True)

        size = job["batch_size"]
        rng = random.Random(job["seed"])
        self.batches = {task: self.group(lengths, size, rng) for task, lengths in self.lengths.items()}
        self.score_batches = {}
        for task, lengths in self.lengths.items():
            order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
            step = max(size, 64)
            self.score_batches[task] = [order[i : i + step] for i in range(0, len(order), step)]

    @staticmethod
    def group(lengths, size, rng):
        """Return one epoch's batches: rows shuffled, sorted by length within mega-batches."""
        order, batches = list(range(len(lengths))), []
        rng.shuffle(order)
        mega = size * max(1, min(MEGA_BATCH, len(order) // (4 * size)))
        for start in range(0, len(order), mega):
            chunk = sorted(order[start : start + mega], key=lambda i: -lengths[i])
            batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        return batches

    def tokens(self, task, batch):
        """Return (real tokens, padded tokens) of a batch."""
        lengths = [self.lengths[task][i] for i in batch]
        return sum(lengths), max(lengths) * len(lengths)

    def logits(self, task, batch):
        """Return the logits (B, n) of a batch, in fp32."""
        T, encoded = max(self.lengths[task][i] for i in batch), self.encoded[task]
        inputs = {}
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            column = encoded[name]
            padded = torch.tensor([column[i] + [0] * (T - len(column[i])) for i in batch])  # (B, T)
            inputs[name] = padded.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            return self.heads[task](self.model(**inputs).pooler_output).float()

    def train(self, task, batches):
        """Take a step for each of the batches."""
        self.both.train()
        for batch in batches:
            labels = torch.tensor([self.labels[task][i] for i in batch]).to(self.device, non_blocking=True)
            logits = self.logits(task, batch)
            if task == "sst":
                loss = cross_entropy(logits, labels)
            elif task == "para":
                loss = binary_cross_entropy_with_logits(logits[:, 0], labels.float())
            else:
                loss = mse_loss(logits[:, 0], labels.float())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.both.parameters(), 1.0)
            self.optimizer.step()

    @torch.inference_mode()
    def score(self, task, batches):
        """Score the batches."""
        self.both.eval()
        logits = [self.logits(task, batch) for batch in batches]
        torch.cat(logits).tolist()

    def report(self):
        """Return what is peculiar to this contender."""
        import transformers

        return {"transformers": transformers.__version__}


if __name__ == "__main__":
    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "stopwatch.py"))["serve"](HuggingFace)
