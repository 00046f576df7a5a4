"""This project's training, a contender of `benchmarks.throughput`: what multitask_classifier.py runs by default.

job["off"] names the means to do without, one of the keys of OFF or "buckets", "fused AdamW", "kept memory".
"""

import importlib
import json
import time

import numpy as np
from torch import nn

import evaluation
from config import BertConfig
from datasets import dataset_of
from engine import step
from engine.batching import bucket_loader, scoring_size
from engine.cpu import fit_threads, keep_freed_memory
from engine.loop import optimizer_settings, step_settings
from engine.progress import MeanLosses
from extensions import TASK_LOSSES
from extensions.schedules._steps import Part
from extensions.specs import from_spec
from multitask_classifier import MultitaskBERT, get_args
from optimizer import AdamW
from tasks import TASKS
from utils import get_device, seed_everything

# Where a means is switched off: modules, a name in each, and what stands in for it.
OFF = {"packed attention": [("engine.step", "pack_attention", lambda model: None)],
       "fast dropout": [("engine.step", "use_fast_dropout", lambda model: None),
                        ("engine.packed_attention", "FastDropout", nn.Dropout)],
       "graphs": [("engine.step", "GraphedStep", lambda step: step)]}


def in_random_order(lengths, size, rng):
    """Return batches of rows in random order, lists of row indices."""
    order = rng.permutation(len(lengths))
    return [order[i : i + size].tolist() for i in range(0, len(order), size)]


class ThisEngine:
    """The contender: a batch is the list of its row indices."""

    def __init__(self, job):
        self.off, self.device = list(job["off"]), get_device(job["device"] == "cuda")
        # On CUDA these two go together with graphs: of hundreds of shapes, or of another optimizer, there are none.
        if self.device.type == "cuda" and {"buckets", "fused AdamW"} & set(self.off):
            self.off.append("graphs")
        for means in self.off:
            for module, name, substitute in OFF.get(means, []):
                setattr(importlib.import_module(module), name, substitute)
        if self.device.type == "cpu":
            fit_threads()
            if "kept memory" not in self.off:
                keep_freed_memory()
        seed_everything(job["seed"])
        precision = "fp32" if "bf16" in self.off else "auto"
        self.args = get_args(["--pretrained", "minilm", "--batch_size", str(job["batch_size"]), "--seed",
                              str(job["seed"]), "--precision", precision])

        with open(job["rows"], encoding="utf-8") as file:
            rows = json.load(file)["rows"]
        self.startup = {}
        for what in ("tokenizing, cold", "tokenizing, cached"):  # the second time from the files of the first
            start = time.perf_counter()
            self.load(rows)
            self.startup[what] = time.perf_counter() - start

        architecture = BertConfig(**job["architecture"]).to_dict()
        self.model = MultitaskBERT({"hidden_dropout_prob": 0.1, "option": "finetune", "pretrained": "minilm",
                                    "bert_config": architecture}).to(self.device)
        self.optimizer = step.make_optimizer(self.model, **optimizer_settings(self.args))
        if "fused AdamW" in self.off:
            self.optimizer = AdamW(self.optimizer.param_groups)
        self.step = step.make_step(self.model, {task: from_spec(TASKS[task].loss, TASK_LOSSES) for task in rows},
                                   self.optimizer, self.device, **step_settings(self.args))

        rng = np.random.default_rng(job["seed"])
        samplers = {task: loader.batch_sampler for task, loader in self.loaders.items()}
        if "buckets" in self.off:
            self.batches = {task: in_random_order(self.lengths[task], job["batch_size"], rng) for task in samplers}
        else:
            self.batches = {task: sampler.batches(0) for task, sampler in samplers.items()}
            if self.device.type == "cuda":
                self.one_of_each_shape = {task: self.shapes(task) for task in self.batches}
        cuda = self.device.type == "cuda"
        self.score_loaders = {task: bucket_loader(dataset, *scoring_size(cuda), pin_memory=cuda)
                              for task, dataset in self.data.items()}
        self.score_batches = {task: loader.batch_sampler.batches(0) for task, loader in self.score_loaders.items()}

    def load(self, rows):
        """Build data sets and loaders of {task: rows} anew."""
        rows = {task: [(*row, str(i)) for i, row in enumerate(task_rows)] for task, task_rows in rows.items()}
        self.data = {task: dataset_of(task, task_rows, self.args) for task, task_rows in rows.items()}
        self.loaders = {task: bucket_loader(dataset, self.args.batch_size, self.args.max_tokens, shuffle=True,
                                            seed=self.args.seed + i, pin_memory=self.device.type == "cuda")
                        for i, (task, dataset) in enumerate(self.data.items())}
        self.lengths = {task: np.asarray(dataset.lengths()) for task, dataset in self.data.items()}

    def width(self, task, batch):
        """Return the padded length of a batch."""
        longest = int(self.lengths[task][batch].max())
        return longest if "buckets" in self.off else int(self.loaders[task].batch_sampler.width(batch))

    def shapes(self, task):
        """Return a batch of each shape that the task's epoch has."""
        return list({(self.width(task, batch), len(batch)): batch for batch in self.batches[task]}.values())

    def tokens(self, task, batch):
        """Return (real tokens, padded tokens) of a batch."""
        return int(self.lengths[task][batch].sum()), self.width(task, batch) * len(batch)

    def train(self, task, batches):
        """Take a step for each of the batches."""
        self.model.train()
        losses = MeanLosses()
        for batch in batches:  # as loop.Training.step
            step.set_learning_rates(self.optimizer, 1.0)
            part = Part(step.to_device(self.loaders[task].build(batch, self.width(task, batch)), self.device))
            losses.add(self.step([{task: part}]))
            if self.device.type == "cpu":
                int(self.step.skipped)  # the loop's look at losses that are not finite
        losses.means()

    def score(self, task, batches):
        """Score the batches."""
        loader = [self.score_loaders[task].build(batch) for batch in batches]
        with step.autocast(self.device, self.args.precision):
            evaluation.evaluate_tasks({task: loader}, self.model, self.device)

    def report(self):
        """Return what is peculiar to this contender."""
        return {"off": self.off}


if __name__ == "__main__":
    from benchmarks.stopwatch import serve

    serve(ThisEngine)
