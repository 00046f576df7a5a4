"""Measure what a training step costs with each row of an ablation, in multiples of the base's step.

    python -m benchmarks.step_cost recipes/ablation.txt recipes/encoder.txt [--data DIR] [--rows 16] [--rounds 4]
        [--only NAME ...] [--precision fp32] [--use_gpu]

Both train on the same rows of each of the three tasks, those of a batch of median length, in one step a task or, where
the schedule says so, in one for all: turn by turn, so that a busy machine slows both. A ratio is the median over the
rounds; beside it stand the smallest and the largest. Time is the processor's, of all threads (start it with
OMP_NUM_THREADS=1), or the clock's on a GPU. What a schedule draws how often is no part of it.
"""

import contextlib
import io
import json
import statistics
import time
from pathlib import Path

import torch

from engine.arguments import PRECISIONS
from engine.cpu import fit_threads, keep_freed_memory
from engine.ema import ExponentialMovingAverage
from engine.loop import optimizer_settings, step_settings
from engine.losses import total_loss
from engine.parser import number
from engine.step import make_optimizer, make_step, to_device
from extensions import SCHEDULES
from extensions.encoder import techniques_of
from extensions.schedules._steps import Part
from extensions.specs import build
from files.errors import Parser, UserError, run_script
from multitask_classifier import build_model, get_args, training_loaders
from scripts.ablation import read_rows_of
from utils import get_device, seed_everything

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"


class Contender:
    """A model and its training step by the flags of a row, and the three tasks' batches for it."""

    def __init__(self, flags, rows, device, use_gpu, chosen=None):
        self.args = get_args([*flags, "--batch_size", str(rows), *(["--use_gpu"] if use_gpu else [])])
        self.device = device
        seed_everything(1)
        self.model = build_model(self.args)[0].to(device)
        loaders = training_loaders(self.args)
        self.schedule = build(self.args.schedule, SCHEDULES, loaders, 1, self.args.epochs)
        losses = {task: total_loss(self.args.loss[task]) for task in loaders}
        self.step = make_step(self.model, losses, make_optimizer(self.model, **optimizer_settings(self.args)), device,
                              joint=self.schedule.joint, **step_settings(self.args))
        self.ema = ExponentialMovingAverage(self.model, self.args.ema) if self.args.ema else None
        for technique in techniques_of(self.model, "start_epoch"):
            technique.start_epoch(0)
        self.chosen = chosen or {task: median_batch(loader) for task, loader in loaders.items()}
        parts = {task: Part(to_device(loaders[task].build(rows, loaders[task].batch_sampler.width(rows)), device))
                 for task, rows in self.chosen.items()}
        self.steps = [parts] if self.schedule.joint else [{task: part} for task, part in parts.items()]

    def seconds(self):
        """Train on all three batches; return the seconds that took."""
        self.model.train()
        start = clock(self.device)
        for n, parts in enumerate(self.steps, start=1):
            self.step([parts])
            if self.ema:
                self.ema.update(n)
        return clock(self.device) - start


def median_batch(loader):
    """Return the row indices of the batch of median length of a loader's first epoch."""
    sampler = loader.batch_sampler
    full = [batch for batch in sampler.batches(0) if len(batch) == sampler.batch_size] or sampler.batches(0)
    return sorted(full, key=sampler.width)[len(full) // 2]


def clock(device):
    """Return the seconds that the processor has worked, or, once a GPU has done all it was told, the time."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(base, other, rounds):
    """Return the ratios of the other's seconds to the base's, one a round.

    Two rounds before warm both up: in the first all is new, and in the second CUDA graphs are recorded.
    """
    pairs = [(base.seconds(), other.seconds()) for _ in range(rounds + 2)][2:]
    return [theirs / ours for ours, theirs in pairs]


def main(argv=None):
    """Compare every row with the base; print the table and one JSON line."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="ablation files; each begins with its base")
    parser.add_argument("--data", default=str(SAMPLE), help="folder of the course's files")
    parser.add_argument("--rows", type=number(int, 1), default=16, help="rows of a task's batch")
    parser.add_argument("--rounds", type=number(int, 1), default=4, help="how often each is timed")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows alone")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="as the training scripts'")
    parser.add_argument("--use_gpu", action="store_true", help="measure on the GPU")
    args = parser.parse_args(argv)
    device = get_device(args.use_gpu)
    if device.type == "cpu":
        fit_threads()
        keep_freed_memory()

    said = io.StringIO()  # what training prints at its start is not for this table
    results = []
    print("| | × the base's step | from | to | trained |\n|---|---|---|---|---|")
    for path in args.files:
        (_, base_flags), *rows = read_rows_of(path)
        shared = [*base_flags, "--data_dir", args.data, "--precision", args.precision]
        with contextlib.redirect_stdout(said):
            base = Contender(shared, args.rows, device, args.use_gpu)
        for name, flags in rows:
            if args.only and name not in args.only:
                continue
            with contextlib.redirect_stdout(said):
                other = Contender([*shared, *flags], args.rows, device, args.use_gpu, base.chosen)
                ratios = compare(base, other, args.rounds)
            trained = sum(p.numel() for p in other.step.params)
            results.append({"name": name, "ratio": round(statistics.median(ratios), 3), "least": round(min(ratios), 3),
                            "most": round(max(ratios), 3), "trained": trained, "flags": flags})
            print(f"| {name} | {results[-1]['ratio']:.2f} | {min(ratios):.2f} | {max(ratios):.2f} | {trained:,} |",
                  flush=True)
            del other
    if not results:
        raise UserError(f"nothing to compare with the base: {', '.join(args.files)} has no row"
                        + (f" {' or '.join(args.only)}" if args.only else " beside it"))
    print(json.dumps({"benchmark": "step_cost", "device": device.type, "threads": torch.get_num_threads(),
                      "precision": args.precision, "rows": args.rows, "rounds": args.rounds, "results": results}))


if __name__ == "__main__":
    run_script(main)
