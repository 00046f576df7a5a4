"""Speed of the tokenizer against transformers' (Rust): one sentence a call, one thread, a fresh process for every run.

    python -m benchmarks.tokenizer [--file data/ids-sst-train.csv] [--repeats 5]

Prints a table and one JSON line. The first pass starts with nothing remembered, the second repeats it. The sides take
turns and both must find the same ids. The seconds are those of the process (CPU time), not of the clock on the wall:
with one thread and nothing to wait for they are the same on an idle machine, and other programs disturb them less.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from files.errors import Parser, UserError, run_script
from files.pretrained import pretrained_file

ROOT = Path(__file__).resolve().parent.parent
# What one process runs. Garbage is collected before the measurement, so that neither side pays for its imports.
RUN = """
import gc, hashlib, json, sys, time
texts, vocab_file, ours = json.load(sys.stdin)
if ours:
    from tokenizer import BertTokenizer
    tokenizer = BertTokenizer(vocab_file)
else:
    from transformers import BertTokenizer
    tokenizer = BertTokenizer(vocab=vocab_file)
gc.collect()
speeds = []
for _ in range(2):
    start = time.process_time()
    for text in texts:
        tokenizer(text)
    speeds.append(len(texts) / (time.process_time() - start))
digest = hashlib.sha256(repr([tokenizer(text)["input_ids"] for text in texts]).encode()).hexdigest()
print(json.dumps([*speeds, digest]))
"""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure(texts, vocab_file, ours):
    """Return (sentences/s in the first pass, in the second, digest of all ids) of one side in a fresh process."""
    folder = ROOT if ours else tempfile.gettempdir()  # our datasets.py must not pass for Hugging Face's
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ONE_THREAD
    process = subprocess.run(
        [sys.executable, "-c", RUN], cwd=folder, env=environment, input=json.dumps([texts, vocab_file, ours]),
        stdout=subprocess.PIPE, text=True, check=True,
    )
    return json.loads(process.stdout)


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", default="data/ids-sst-train.csv", help="tab-separated, with a column `sentence`")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not Path(args.file).is_file():
        raise UserError(f"{args.file} is absent: `python -m scripts.download_data` fetches it, --file names another.")
    with open(args.file, encoding="utf-8", newline="") as file:
        texts = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
    vocab_file = pretrained_file("minilm", ("vocab.txt",))

    runs = {"ours": [], "transformers": []}
    for _ in range(args.repeats):
        for side in runs:
            runs[side].append(measure(texts, vocab_file, side == "ours"))
    assert len({digest for side in runs.values() for *_, digest in side}) == 1, "the two sides find different ids"

    first = {side: median(run[0] for run in runs[side]) for side in runs}
    second = {side: median(run[1] for run in runs[side]) for side in runs}
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(runs["ours"], runs["transformers"])]
    print(f"{len(texts):,} sentences, median of {args.repeats} runs, sentences/s")
    print(f"{'':14}{'first pass':>12}{'second pass':>14}")
    for side in runs:
        print(f"{side:14}{first[side]:12,.0f}{second[side]:14,.0f}")
    print(f"{'ratio':14}{first['ours'] / first['transformers']:12.2f}{second['ours'] / second['transformers']:14.2f}")
    print(f"first pass, run by run: {min(ratios):.2f} to {max(ratios):.2f} times as fast")
    print(json.dumps({
        "benchmark": "tokenizer", "sentences": len(texts), "repeats": args.repeats,
        "first_pass": {side: round(speed) for side, speed in first.items()},
        "second_pass": {side: round(speed) for side, speed in second.items()},
        "ratio_first_pass": round(first["ours"] / first["transformers"], 2),
        "ratio_first_pass_min": round(min(ratios), 2),
    }))


if __name__ == "__main__":
    run_script(main)
