"""The inside of a contender's process in `benchmarks.throughput`: it obeys orders, a JSON line each.

A contender is built from a job and has

    startup                   {"tokenizing ...": seconds}
    batches, score_batches    {task: list of batches of one epoch}; what a batch is, only the contender knows
    tokens(task, batch)       (real tokens, tokens with the padding that a training batch has)
    train(task, batches)      one optimizer step a batch
    score(task, batches)      logits of each batch on the host, without gradients
    report()                  anything else that ought to stand in the result

This file imports nothing of the project, so that it also runs where the project is out of sight.
"""

import io
import json
import resource
import sys
import time
from pathlib import Path

import torch


def spread(batches, sizes, count):
    """Return `count` of the batches, evenly spread over their order by `sizes`: every length has its share."""
    order = sorted(range(len(batches)), key=lambda i: sizes[i])
    count = min(count, len(order))
    return [batches[order[int((i + 0.5) * len(order) / count)]] for i in range(count)]


def synchronize(device):
    """Wait until the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device):
    """Return the bytes held at most so far: by torch's allocator on CUDA, else by the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with the parent's
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matrix_rate(device, dtypes, seconds=0.3):
    """Return {dtype: FLOP/s} of square matrix products, the largest over a few sizes."""
    rates = {}
    for dtype in dtypes:
        for n in (4096, 8192) if device == "cuda" else (1024, 2048):
            a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
            out = a @ a
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds:
                synchronize(device)
                start = time.perf_counter()
                repeats = 10 if device == "cuda" else 1
                for _ in range(repeats):
                    torch.mm(a, a, out=out)
                synchronize(device)
                rate = 2 * n**3 * repeats / (time.perf_counter() - start)
                rates[dtype] = max(rates.get(dtype, 0), rate)
    return rates


class Stopwatch:
    """One contender and its sample of an epoch's batches: `samples` {task: how many}."""

    def __init__(self, build, job):
        self.device = job["device"]
        imported = time.time()
        self.contender = contender = build(job)
        synchronize(self.device)
        startup = {"imports": imported - job["spawned"], **contender.startup}
        startup["model"] = time.time() - imported - sum(contender.startup.values())
        self.ready = {"startup": startup, "batches": {}, "tokens": {}, "scale": {"train": {}, "score": {}}}
        self.samples = {"train": {}, "score": {}}
        for what, batches, counts in (("train", contender.batches, job["samples"]),
                                      ("score", contender.score_batches, job["score_samples"])):
            for task in batches:
                tokens = [contender.tokens(task, batch) for batch in batches[task]]
                real, padded = zip(*tokens)
                sizes = padded if what == "train" else real  # `tokens` knows the padding of training alone
                sample = spread(range(len(sizes)), sizes, counts[task])
                self.samples[what][task] = [batches[task][i] for i in sample]
                # seconds of the sample times this are those of all batches
                self.ready["scale"][what][task] = sum(sizes) / sum(sizes[i] for i in sample)
                if what == "train":
                    self.ready["batches"][task], self.ready["tokens"][task] = len(tokens), [sum(real), sum(padded)]
        # a contender that prepares for every shape says so by a batch of each
        self.warm = getattr(contender, "one_of_each_shape", self.samples["train"])

    def seconds(self, what, sample):
        """Return {task: seconds}; the device is waited for at both ends of a task's batches only."""
        result = {}
        for task, batches in sample.items():
            synchronize(self.device)
            start = time.perf_counter()
            what(task, batches)
            synchronize(self.device)
            result[task] = time.perf_counter() - start
        return result

    def train(self):
        """Train on the sample; return {task: seconds}."""
        shortest = next(iter(self.samples["train"].items()))
        self.contender.train(shortest[0], shortest[1][:1])  # untimed: it wakes up from the others' turns
        return self.seconds(self.contender.train, self.samples["train"])

    def score(self):
        """Score the sample; return {task: seconds}."""
        return self.seconds(self.contender.score, self.samples["score"])

    def warm_up(self):
        """Use each shape for the first time, so that its kernels are there later on.

        Returns the seconds of that, and of the same with the kernels at hand (0: as in the rounds).
        """
        passes = 1 if self.warm is self.samples["train"] else 3  # a graph may be captured at the second use
        seconds = [sum(self.seconds(self.contender.train, self.warm).values()) for _ in range(passes)]
        return {"first": sum(seconds[:2]), "again": 2 * seconds[2] if passes > 1 else 0}

    def finish(self):
        """Return the peak of the memory, what the contender reports, and what it has printed."""
        said = sys.stdout.getvalue().splitlines() if isinstance(sys.stdout, io.StringIO) else []
        return {"peak_bytes": peak_memory(self.device), **self.contender.report(), "said": said}


def serve(build):
    """Build the contender from the job in the first line of standard input, then answer the orders that follow."""
    answers, sys.stdout = sys.stdout, io.StringIO()  # whatever prints must not stand between the answers
    orders = (json.loads(line) for line in sys.stdin)
    job = next(orders)
    torch.set_num_threads(job["threads"])
    watch = Stopwatch(build, job)
    print(json.dumps(watch.ready), file=answers, flush=True)
    for order in orders:
        print(json.dumps(getattr(watch, order)()), file=answers, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(matrix_rate(sys.argv[2], sys.argv[3:])))
