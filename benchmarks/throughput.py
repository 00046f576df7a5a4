"""Measure one multitask epoch of the course's size: a textbook's training, transformers' at its best, and this one.

    python -m benchmarks.throughput [--shape bert-base|minilm] [--device auto] [--batch_size N ...] [--data DIR]
                                    [--quick] [--ablation]

Every contender has a process of its own, with the same rows, random weights and dropout of 0.1 throughout. They take
turns: in every round each trains on its sample of its epoch, batches spread evenly over the lengths of each task, and
the medians of the rounds are scaled to SST's 8,544, Quora's 141,506 and STS's 6,040 examples. Without the course's
files in DIR the rows are made up, in the lengths of the course's (benchmarks/workload.py).

MFU is the work that the epoch's real tokens need (pairs as one sequence, whatever a contender does) over what the
device could do in the time, at the largest matrix rate that the run has measured. `first use` is what the first pass
over the shapes took longer than the later ones: kernels made, graphs captured, code compiled.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.workload import COURSE_TASKS, SCORE_EXAMPLES, TRAIN_EXAMPLES, epoch_work, packed, workload
from engine.cpu import fit_threads
from engine.step import bf16_in_hardware
from files.errors import Parser, UserError, run_script
from files.pretrained import VOCAB_NAME, pretrained_file
from tokenizer import BertTokenizer

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SHAPES = {"bert-base": dict(zip(NAMES, (30522, 768, 12, 12, 3072))),
          "minilm": dict(zip(NAMES, (30522, 384, 6, 12, 1536)))}
COMMANDS = {
    "textbook": ["-m", "benchmarks.textbook"],
    # isolated: neither this folder nor PYTHONPATH is searched, so that our datasets.py is out of sight
    "transformers": ["-I", str(ROOT / "benchmarks" / "hugging_face.py")],
    "minBERT": ["-m", "benchmarks.this_engine"],
}
# What can be switched off, and the name that benchmarks/this_engine.py has for it.
MEANS = {
    "cpu": ("bf16", "buckets", "packed attention", "fast dropout", "fused AdamW", "kept memory"),
    "cuda": ("bf16", "buckets", "packed attention", "fused AdamW", "graphs"),
}
GIB = 2**30


class Contender:
    """A contender's process; `ready` is what it said before its first step."""

    def __init__(self, name, job):
        self.name = name
        command = COMMANDS[name]
        # a folder of its own for the token cache: tokenizing starts cold
        environment = {**os.environ, "MINBERT_CACHE": job["folder"], "HF_HUB_OFFLINE": "1",
                       "TRANSFORMERS_VERBOSITY": "error"}
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=job["folder"] if "-I" in command else ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        print(json.dumps({**job, "spawned": time.time()}), file=self.process.stdin, flush=True)
        self.ready = self.answer()
        self.warmed = self.ask("warm_up")
        self.rounds = []

    def ask(self, order):
        """Return the process's answer to an order: a method of `stopwatch.Stopwatch`."""
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the process of {self.name} has ended; what it said stands above")
        return json.loads(line)

    def close(self):
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def scaled(contender, what, seconds, lengths, examples):
    """Return the seconds of `examples` {task: number} from the seconds {task: s} of the contender's sample."""
    scale = contender.ready["scale"][what]
    return sum(seconds[task] * scale[task] * count / len(lengths[task]) for task, count in examples.items())


def epochs(contender, lengths, examples=TRAIN_EXAMPLES):
    """Return the seconds of an epoch of `examples` {task: number} by each round."""
    return [scaled(contender, "train", seconds, lengths, examples) for seconds in contender.rounds]


def result_of(contender, lengths, flops, rate):
    """Return one contender's measurements, scaled to the course's epoch."""
    ready, total = contender.ready, sum(TRAIN_EXAMPLES.values())
    seconds = median(epochs(contender, lengths))
    times = {task: TRAIN_EXAMPLES[task] / len(lengths[task]) for task in lengths}  # epochs at hand in a whole one
    steps = sum(ready["batches"][task] * times[task] for task in COURSE_TASKS)
    real, padded = (sum(ready["tokens"][task][i] * times[task] for task in COURSE_TASKS) for i in (0, 1))
    # tokenizing takes time in proportion to the tokens
    at_hand = {task: packed(lengths[task]).sum() for task in COURSE_TASKS}
    whole = sum(at_hand[task] * times[task] for task in COURSE_TASKS) / sum(at_hand.values())
    startup = {what: s * (whole if what.startswith("tokenizing") else 1) for what, s in ready["startup"].items()}
    again = contender.warmed["again"] or median(sum(s.values()) for s in contender.rounds)
    startup["first use"] = max(0.0, contender.warmed["first"] - again)
    report = contender.ask("finish")  # before scoring, whose memory is not training's
    contender.ask("score")  # untimed: new shapes
    scoring = contender.ask("score")
    return {
        "examples_per_s": total / seconds,
        "examples_per_s_by_task": {task: 1 / median(epochs(contender, lengths, {task: 1})) for task in COURSE_TASKS},
        "ms_per_step": 1000 * seconds / steps, "epoch_s": seconds,
        "epoch_s_rounds": epochs(contender, lengths), "mfu": flops / seconds / rate, "padding_share": 1 - real / padded,
        "padding_share_by_task": {task: 1 - ready["tokens"][task][0] / ready["tokens"][task][1] for task in lengths},
        "peak_gib": report.pop("peak_bytes") / GIB, "startup_s": startup,
        "scoring_s": scaled(contender, "score", scoring, lengths, SCORE_EXAMPLES), **report,
    }


def rounded(value):
    """Return the value with its floats cut to four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def print_table(results):
    """Print the contenders side by side, then what the start-up of each consists of."""
    print(f"{'':14}{'examples/s':>11}{'ms/step':>10}{'epoch s':>10}{'MFU':>8}{'padding':>9}{'peak GiB':>10}"
          f"{'start-up s':>12}{'scoring s':>11}")
    for name, r in results.items():
        startup = sum(seconds for what, seconds in r["startup_s"].items() if what != "tokenizing, cached")
        print(f"{name:14}{r['examples_per_s']:11,.1f}{r['ms_per_step']:10,.1f}{r['epoch_s']:10,.1f}{r['mfu']:8.2%}"
              f"{r['padding_share']:9.1%}{r['peak_gib']:10.2f}{startup:12.1f}{r['scoring_s']:11,.1f}")
    ours = results["minBERT"]
    print("minBERT: " + "; ".join(ours["said"]))
    for name in results:
        if name != "minBERT":
            ratio = ours["examples_per_s"] / results[name]["examples_per_s"]
            print(f"minBERT trains {ratio:.2f} times as many examples a second as {name}")
    for name, r in results.items():
        print(f"start-up of {name}, s: " + ", ".join(f"{what} {s:.1f}" for what, s in r["startup_s"].items()))
    apart = max(max(r["epoch_s_rounds"]) / min(r["epoch_s_rounds"]) for r in results.values())
    if apart > 1.2:  # two threads on cores that others use too can take many times as long as one
        print(f"the rounds are up to {apart:.1f} times apart: other programs ran; measure again on a quiet machine")
    warm = sum(seconds for what, seconds in ours["startup_s"].items() if what != "tokenizing, cold")
    print(f"start-up of minBERT when its token cache is there: {warm:.1f} s")


def matrix_rates(threads, device, dtypes):
    """Return {dtype: FLOP/s} of the device, measured in a process of its own."""
    output = subprocess.run([sys.executable, "-m", "benchmarks.stopwatch", str(threads), device, *dtypes], cwd=ROOT,
                            check=True, text=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def take_turns(contenders, rounds):
    """Let each contender train on its sample once a round."""
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        # every other round backwards, so that nobody always comes first
        for contender in contenders[:: 1 if number % 2 == 0 else -1]:
            contender.rounds.append(contender.ask("train"))


def compete(jobs, rounds, lengths, flops, dtypes):
    """Return ({name: measurements}, {dtype: FLOP/s}) of the contenders {name: job}."""
    place = jobs["minBERT"]["threads"], jobs["minBERT"]["device"]
    contenders = [Contender(name, job) for name, job in jobs.items()]
    before = matrix_rates(*place, dtypes)
    take_turns(contenders, rounds)
    after = matrix_rates(*place, dtypes)
    rates = {dtype: max(before[dtype], after[dtype]) for dtype in dtypes}
    results = {}
    for contender in contenders:
        results[contender.name] = result_of(contender, lengths, flops, max(rates.values()))
        contender.close()
    return results, rates


def ablation(job, rounds, lengths):
    """Return {means: measurements with everything and without it}, by pairs of processes that take turns; print it."""
    whole, results = Contender("minBERT", job), {}
    print(f"\n{'without':18}{'examples/s':>11}{'with all':>10}{'gain':>8}{'peak GiB':>10}")
    for means in MEANS["cuda" if job["device"] == "cuda" else "cpu"]:
        if means == "bf16" and not job["bf16"]:
            continue
        try:
            without = Contender("minBERT", {**job, "off": [means]})
        except UserError as error:  # one means may need another
            print(f"{means:18}{error}")
            continue
        whole.rounds = []
        take_turns([whole, without], rounds)
        turns = [epochs(contender, lengths) for contender in (whole, without)]
        seconds = [median(turn) for turn in turns]
        gain = median(b / a for a, b in zip(*turns)) - 1  # by pairs of turns, which disturbances hit alike
        results[means] = {"epoch_s": seconds[1], "epoch_s_with_all": seconds[0], "gain": gain,
                          "peak_gib": without.ask("finish")["peak_bytes"] / GIB}
        without.close()
        speeds = [sum(TRAIN_EXAMPLES.values()) / s for s in seconds]
        print(f"{means:18}{speeds[1]:11,.1f}{speeds[0]:10,.1f}{results[means]['gain']:8.1%}"
              f"{results[means]['peak_gib']:10.2f}", flush=True)
    whole.close()
    return results


def get_args(argv=None):
    """Parse the command line and settle what depends on the device and on --quick."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="default: bert-base, with --quick minilm")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where it is")
    parser.add_argument("--batch_size", type=int, nargs="+", help="default: 32, on CUDA 32 and 128")
    parser.add_argument("--data", default=str(ROOT / "data"), help="folder of the course's files")
    parser.add_argument("--quick", action="store_true", help="few steps: a minute on two cores")
    parser.add_argument("--ablation", action="store_true", help="this engine without each of its means, too")
    parser.add_argument("--steps", type=int, help="steps a round: of Quora; of SST and of STS a quarter")
    parser.add_argument("--rounds", type=int, help="how often everybody has a turn")
    parser.add_argument("--limit", type=int, help="rows a task at most (default: with --quick 10,000)")
    parser.add_argument("--seed", type=int, default=11711, help="of rows, orders and weights")
    args = parser.parse_args(argv)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; leave the flag out to measure on the CPU")
    cuda = args.device == "cuda"
    args.shape = args.shape or ("minilm" if args.quick else "bert-base")
    args.batch_size = args.batch_size or ([32, 128] if cuda else [32])
    args.steps = args.steps or (96 if cuda else 12) // (3 if args.quick else 1)
    args.limit = args.limit or (10_000 if args.quick else None)
    args.rounds = args.rounds or (2 if args.quick else 3)
    return args


def load():
    """Return how many processes compute or wait to compute, the mean of the last minute; None where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def main(argv=None):
    args = get_args(argv)
    device, architecture = args.device, SHAPES[args.shape]
    fit_threads()
    threads = torch.get_num_threads()
    bf16 = bf16_in_hardware(torch.device(device))
    dtypes = ["bfloat16", "float32"] if bf16 else ["float32"]
    names = list(COMMANDS)
    if importlib.util.find_spec("transformers") is None:
        names.remove("transformers")
        print("no row of transformers: the package is not installed (requirements-dev.txt)")
    vocab = pretrained_file("minilm", (VOCAB_NAME,))
    rows, lengths, source = workload(args.data, args.limit, BertTokenizer(vocab), args.seed)
    tokens, flops = epoch_work(lengths, architecture, TRAIN_EXAMPLES)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{threads} CPU threads"
    print(f"{args.shape} shape, {where}, {'bf16' if bf16 else 'no bf16 in hardware'}, torch {torch.__version__}; "
          f"an epoch: {sum(TRAIN_EXAMPLES.values()):,} examples, {tokens / 1e6:.2f} M tokens, {flops / 1e15:.2f} PFLOP")
    print(f"texts: {source}, {sum(map(len, rows.values())):,} rows; {args.rounds} rounds; "
          f"training and tokenizing scaled to the epoch, scoring to {sum(SCORE_EXAMPLES.values()):,} examples")

    tables, load_before = [], load()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "lengths": lengths}, file)
        for batch_size in args.batch_size:
            jobs = {}
            for name in names:
                # a textbook's step takes as long as many of the others'
                steps = max(1, args.steps // 4) if name == "textbook" else args.steps
                samples = {task: steps if task == "para" else max(1, steps // 4) for task in COURSE_TASKS}
                own = os.path.join(folder, f"{name}-{batch_size}")
                os.mkdir(own)
                jobs[name] = {"rows": path, "vocab": str(vocab), "folder": own, "architecture": architecture,
                              "device": device, "threads": threads, "bf16": bf16, "batch_size": batch_size,
                              "seed": args.seed, "off": [], "samples": samples,
                              "score_samples": {task: max(1, n // 2) for task, n in samples.items()}}
            results, rates = compete(jobs, args.rounds, lengths, flops, dtypes)
            print(f"\nbatch {batch_size}; largest matrix rate "
                  + ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in rates.items()))
            print_table(results)
            table = {"batch_size": batch_size, "matrix_flops": rates, "results": results}
            if args.ablation:
                table["ablation"] = ablation(jobs["minBERT"], args.rounds, lengths)
            tables.append(table)
    print(json.dumps(rounded({
        "benchmark": "throughput", "shape": args.shape, "device": device, "where": where, "bf16": bf16,
        "threads": threads, "torch": torch.__version__, "quick": args.quick, "texts": source, "rounds": args.rounds,
        "epoch": {"examples": TRAIN_EXAMPLES, "tokens": tokens, "flops": flops},
        "load": [load_before, load()], "tables": tables})))


if __name__ == "__main__":
    run_script(main)
