"""Train a base recipe and the same with each technique, and print what every technique is worth.

    python -m scripts.ablation recipes/ablation.txt --data_dir data --out runs/ablation [--seeds 1 2 3] [--share 10]
        [--jobs 1] [--only NAME ...] [-- FLAG ...]
    python -m scripts.ablation recipes/ablation.txt --table docs/results.jsonl [--share 10]

A line of the file is `NAME | flags`; the first is the base, whose flags every other row has too. `--share P` screens
on P percent of the training rows, of the paraphrase dev rows, which are most of the dev rows, and of the test rows,
which nobody scores. What comes after `--` goes to every run. A run that is in OUT/results.jsonl is not repeated, and
one that was interrupted goes on, so that the table may be made in several sittings; --save_every N among the flags
keeps what a power cut would lose.

OUT/table.md is the table: mean ± sd over the seeds of the best dev scores, what that is over the base with the same
seeds, the minutes a run took, and what it costs: the parameters that are trained, the examples it takes a second in
training (of the median log point) and the most memory that it had. `--table` runs nothing and prints that of a file of
results.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from engine.arguments import number
from engine.run_folder import Run, plain
from files.errors import Parser, UserError, run_script
from files.writing import atomic_write
from multitask_classifier import get_parser
from tasks import TASKS, overall_score, with_course_tasks

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
    for task in TASKS:  # a model of its own after --per_task_epochs
        if (run_dir / task).is_dir():
            best["dev"][task] = best_scoring(run_dir / task)["dev"][task]
    best["score"] = overall_score(best["dev"])
    record = json.loads((run_dir / "best.json").read_text())
    size = (run_dir / "best.pt").stat().st_size
    for path in run_dir.rglob("*.pt"):  # some hundred megabytes a run
        path.unlink()
    rates = [line["examples_per_second"] for line in lines_of(run_dir, "train") if line["examples_per_second"]]
    return {"name": name, "seed": seed, "overall": best["score"], **best["dev"], "epoch": best["epoch"],
            "trained": record["trained"], "peak_bytes": record["peak_bytes"], "checkpoint_bytes": size,
            "examples_per_second": statistics.median(rates) if rates else None, "commit": record["commit"],
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
    """Return the results of these rows, (name, flags added to the base), as a markdown table in their order."""
    tasks = with_course_tasks([name for result in results for name in result])
    further = [TASKS[task].form.name for task in tasks[3:]]
    titles = ("", "SST", "Para", "STS", *further, "overall", "over base", "seeds", "minutes", "trained", "examples/s",
              "GiB", "flags added to the base")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    base = rows[0][0]
    with_base = {result["seed"]: result["overall"] for result in results if result["name"] == base}
    for name, flags in rows:
        runs = sorted((result for result in results if result["name"] == name), key=lambda run: run["seed"])
        if runs:
            added = ["", ""] if name == base else [gain(runs, with_base), f"`{shlex.join(flags)}`"]
            lines.append(f"| {' | '.join([name, *scores(runs, tasks), added[0], *costs(runs), added[1]])} |")
    return "\n".join(lines) + "\n"


def scores(runs, tasks):
    """Return the cells of the dev scores of the runs of one row: mean ± sd over the seeds; none of a task left out."""
    cells = []
    for metric in (*tasks, "overall"):
        values = [run[metric] for run in runs if metric in run]
        sd = f" ± {of_one(statistics.stdev(values))}" if len(values) > 1 else ""
        cells.append(of_one(statistics.mean(values)) + sd if values else "")
    return cells


def gain(runs, with_base):
    """Return the cell of what a row's runs have over the base of the same seeds, {seed: overall}."""
    gains = [run["overall"] - with_base[run["seed"]] for run in runs if run["seed"] in with_base]
    if not gains:
        return ""
    size = of_one(abs(statistics.mean(gains)))
    return size if size == ".000" else f"{'−' if statistics.mean(gains) < 0 else '+'}{size}"


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
        latest = {(result["name"], result["seed"]): result for result in read_results(args.table, args.share)
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
