"""Train a base recipe, then the same with each technique, and print how much each technique changes the score.

    python -m scripts.ablation recipes/ablation.txt --data_dir data --out runs/ablation [--seeds 1 2 3] [--share 10]
        [--jobs 1] [--only NAME ...] [-- FLAG ...]
    python -m scripts.ablation recipes/ablation.txt --table docs/results.jsonl [--share 10]

A line of FILE is `NAME | flags`. The first is the base; every other row has its flags too. `--share P` trains on P
percent of the training rows and scores on P percent of the Quora dev rows. Flags after `--` go to every run. Runs that
OUT/results.jsonl holds are not repeated, and an interrupted run is resumed, so a table can be made in several sittings;
add `-- --save_every N` to lose little in a power cut.

OUT/table.md is the table: best dev scores (mean ± sd over the seeds), the difference from the mean of all base runs of
the same precision and share, a verdict (helps, hurts, or no clear effect: within the noise band that stands above the
table), minutes, trained parameters, examples a second (median of the log points) and peak memory. `--table RESULTS`
runs nothing and prints the table of a results.jsonl.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path

import numpy as np

from engine.parser import number
from engine.run_folder import Run, plain
from engine.step import in_bf16
from files.errors import Parser, UserError, run_script
from files.writing import atomic_write
from multitask_classifier import get_parser
from tasks import COURSE_TASKS, overall_score
from utils import get_device

ROOT = Path(__file__).resolve().parent.parent
SAMPLED = ("ids-sst-train.csv", "quora-train.csv", "sts-train.csv", "quora-dev.csv",
           "ids-sst-test-student.csv", "quora-test-student.csv", "sts-test-student.csv")
# What stands in the table of a run's costs: key in results.jsonl, the unit in which it stands there, format.
COSTS = (("seconds", 60, ".1f"), ("trained", 1, ",.0f"), ("examples_per_second", 1, ".1f"),
         ("peak_bytes", 2**30, ".2f"))


def read_rows_of(path):
    """Return [(name, flags)] of an ablation file. Raises UserError for a line without both."""
    rows = []
    for n, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, bar, flags = line.partition("|")
        if not bar or not name.strip():
            raise UserError(f"{path}, line {n}: {line!r} is not `NAME | flags`")
        rows.append((name.strip(), shlex.split(flags)))
    if not rows:
        raise UserError(f"{path} holds no row: write one, `NAME | flags`")
    return rows


def sample_files(data_dir, folder, share):
    """Fill `folder` with the course's files, of the SAMPLED ones `share` percent of the lines, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(Path(data_dir).glob("*.csv")):
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
        if source.name in SAMPLED:
            kept = np.random.default_rng(0).permutation(len(lines) - 1)[: round((len(lines) - 1) * share / 100)] + 1
            lines = [lines[0], *(lines[i] for i in sorted(kept))]
        with atomic_write(folder / source.name) as file:
            file.writelines(lines)
    return folder


def read_results(path, share):
    """Return the lines of a results.jsonl that were trained on this share of the rows. Raises UserError without one."""
    if not os.path.exists(path):
        raise UserError(f"no results {path}: name a results.jsonl that this script has written")
    results = {}
    for n, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            result = json.loads(line)
        except ValueError:
            print(f"note: {path}, line {n} is damaged, as by a power cut: left out", file=sys.stderr)
            continue
        result.setdefault("precision", "fp32")
        if result["share"] == share:
            results[result["name"], result["seed"], result["command"]] = result
    return list(results.values())


def command_of(flags):
    """Return the command line of a run, as results.jsonl has it."""
    return shlex.join(["multitask_classifier.py", *flags])


def has_flags(result, flags, path):
    """Tell whether a result is of a row with these flags, and others after them; None is a row of another file."""
    if flags is None or f"{result['command']} ".startswith(f"{command_of(flags)} "):
        return flags is not None
    print(f"note: {path}: {result['name']} was measured with other flags than {shlex.join(flags)}: left out",
          file=sys.stderr)
    return False


def run(name, flags, seed, folder, data_dir):
    """Train once, or go on with what was interrupted; return the row of results.jsonl.

    Nobody knows the whole time of a run that was interrupted: its "seconds" are None. Raises UserError with the end of
    the log of a run that failed.
    """
    shown = command_of(flags)
    run_dir = folder / f"{name.replace(' ', '-').replace('/', '-')}-{seed}"
    flags = [*flags, "--seed", str(seed), "--data_dir", str(data_dir), "--run_dir", str(run_dir), "--skip_predictions"]
    resumed = interrupted(run_dir, flags)
    command = [sys.executable, "multitask_classifier.py", *flags, *(["--resume"] if resumed else [])]
    start = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = None if resumed else round(time.monotonic() - start)
    if ended.returncode:
        raise UserError(f"{name}, seed {seed}: {shlex.join(command[1:])}\n{ended.stdout[-500:]}{ended.stderr[-2000:]}")
    best = best_scoring(run_dir)
    for task in COURSE_TASKS:  # a model of its own after --per_task_epochs
        if (run_dir / task).is_dir():
            best["dev"][task] = best_scoring(run_dir / task)["dev"][task]
    best["score"] = overall_score(best["dev"])
    record = json.loads((run_dir / "best.json").read_text())
    size = (run_dir / "best.pt").stat().st_size
    for path in run_dir.rglob("*.pt"):  # some hundred megabytes a run
        path.unlink()
    args = record["args"]
    rates = [line["examples_per_second"] for line in lines_of(run_dir, "train") if line["examples_per_second"]]
    return {"name": name, "seed": seed, "overall": best["score"], **best["dev"], "epoch": best["epoch"],
            "trained": record["trained"], "peak_bytes": record["peak_bytes"], "checkpoint_bytes": size,
            "examples_per_second": statistics.median(rates) if rates else None, "commit": record["commit"],
            "precision": "bf16" if in_bf16(get_device(args["use_gpu"]), args["precision"]) else "fp32",
            "seconds": seconds, "command": shown}


def interrupted(run_dir, flags):
    """Tell whether the folder holds a run of these flags of which there is no result: with one it has no last.pt."""
    there = Run(run_dir)
    before = {name: value for name, value in there.stored_arguments()["given"].items() if name != "resume"}
    return os.path.exists(there.last) and before == plain(get_parser().given(flags))


def lines_of(run_dir, kind):
    """Return the lines of a run's metrics of one kind, "train" or "score"."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def best_scoring(run_dir):
    """Return the line of a run's metrics that says most of its best model."""
    return max(lines_of(run_dir, "score"), key=lambda line: line["score"])


def table(rows, results):
    """Return the results of these rows, (name, flags added to the base), as markdown: a table for each precision."""
    titles = ("", "SST", "Para", "STS", "overall", "over base", "verdict", "seeds", "minutes", "trained", "examples/s",
              "GiB", "flags added to the base")
    parts = []
    for precision in sorted({result["precision"] for result in results}, reverse=True):
        measured = sorted((result for result in results if result["precision"] == precision), key=itemgetter("seed"))
        base = [result for result in measured if result["name"] == rows[0][0]]
        lines = [noise(base, precision), "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for name, flags in rows:
            if runs := [result for result in measured if result["name"] == name]:
                gained, added = ([""] * 2, "") if runs == base else (gain(runs, base), f"`{shlex.join(flags)}`")
                lines.append(f"| {' | '.join([name, *scores(runs), *gained, *costs(runs), added])} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def band(base, n=1):
    """Return two standard deviations of the difference between the mean of n runs and that of the base's runs.

    Returns None for fewer than three runs of the base, from which no standard deviation can be told.
    """
    return 2 * statistics.stdev(overalls(base)) * (1 / n + 1 / len(base)) ** 0.5 if len(base) > 2 else None


def noise(base, precision):
    """Return the sentence above a table: what the base has, and which difference from it is more than noise."""
    if not base:
        return f"{precision}. The base has not been measured, so there are no differences."
    head = f"{precision}. Base: {scores(base)[-1]} (seed {', '.join(str(run['seed']) for run in base)})."
    if band(base) is None:
        return f"{head} No verdicts: a noise band needs three seeds of the base."
    return f"{head} A run differs from this if it is more than {of_one(band(base))} away (2 sd of a difference)."


def scores(runs):
    """Return the cells of the dev scores of the runs of one row: mean ± sd over the seeds."""
    cells = []
    for metric in (*COURSE_TASKS, "overall"):
        values = [run[metric] for run in runs]
        sd = f" ± {of_one(statistics.stdev(values))}" if len(values) > 1 else ""
        cells.append(of_one(statistics.mean(values)) + sd)
    return cells


def gain(runs, base):
    """Return the cells of a row's difference from the mean of all runs of the base, and of what that says."""
    if not base:
        return ["", ""]
    difference = statistics.mean(overalls(runs)) - statistics.mean(overalls(base))
    size, noise = of_one(abs(difference)), band(base, len(runs))
    if noise is None:
        verdict = ""
    elif abs(difference) <= noise:
        verdict = "no clear effect"
    else:
        verdict = "helps" if difference > 0 else "hurts"
    return [size if size == ".000" else f"{'−' if difference < 0 else '+'}{size}", verdict]


def overalls(runs):
    """Return the overall dev scores of runs."""
    return [run["overall"] for run in runs]


def costs(runs):
    """Return the cells of the seeds of one row, and of what its runs cost: minutes and COSTS."""
    cells = [", ".join(str(run["seed"]) for run in runs)]
    for key, unit, form in COSTS:
        values = [run[key] / unit for run in runs if run.get(key) is not None]
        cells.append(format(statistics.median(values), form) if values else "")
    return cells


def of_one(value):
    """Return a number below 1 with three places and no zero before the point, as scores are written."""
    return f"{value:.3f}".removeprefix("0")


def get_args(argv=None):
    """Return the parsed command line; `flags` is what stood after `--`."""
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="the rows of the table")
    parser.add_argument("--data_dir", default="data", help="folder of the course's files")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the results")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[1, 2, 3], help="a run for each")
    parser.add_argument("--share", type=number(float, 1, 100), default=100, help="percent of the rows to screen on")
    parser.add_argument("--jobs", type=number(int, 1), default=1, help="runs at the same time, as on one large GPU")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows alone")
    parser.add_argument("--table", metavar="FILE", help="print the table of this results.jsonl, and run nothing")
    args = parser.parse_args(argv[:cut])
    args.flags = argv[cut + 1:]
    return args


def main(argv=None):
    """Run what has not been run, then write and print the table."""
    args = get_args(argv)
    rows = read_rows_of(args.file)
    known = [name for name, _ in rows]
    if unknown := [name for name in args.only or [] if name not in known]:
        raise UserError(f"--only {', '.join(unknown)}: the rows of {args.file} are {', '.join(known)}")
    if args.table:
        flags = {name: [*rows[0][1], *(flags if name != known[0] else [])] for name, flags in rows}
        latest = {(result["name"], result["seed"], result["precision"]): result
                  for result in read_results(args.table, args.share)
                  if has_flags(result, flags.get(result["name"]), args.table)}
        print(table(rows, list(latest.values())), end="")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    data_dir = Path(args.data_dir).resolve()
    if args.share < 100:
        data_dir = sample_files(data_dir, args.out / f"data-{args.share:g}", args.share).resolve()
    log = args.out / "results.jsonl"
    results = read_results(log, args.share) if log.exists() else []
    base = rows[0][1]
    whole = {name: [*base, *(flags if name != known[0] else []), *args.flags] for name, flags in rows}
    results = [result for result in results if result["command"] == command_of(whole.get(result["name"], []))]
    done = {(result["name"], result["seed"]) for result in results}
    todo = [(name, whole[name], seed) for seed in args.seeds for name in known
            if name in (args.only or known) and (name, seed) not in done]

    def one(job):
        try:
            result = {**run(*job, args.out.resolve(), data_dir), "share": args.share}
        except UserError as error:  # the others go on
            print(f"failed: {error}", file=sys.stderr, flush=True)
            return
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        results.append(result)
        print(json.dumps(result), flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, todo))
    with atomic_write(args.out / "table.md") as file:
        file.write(table(rows, results))
    print(os.linesep + table(rows, results))


if __name__ == "__main__":
    run_script(main)
