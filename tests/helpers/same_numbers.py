"""Record what fixed runs compute, and compare two records bit for bit: for changes that must not change numbers.

    python -m tests.helpers.same_numbers before.json --root OTHER_CHECKOUT    (or here, before the change)
    python -m tests.helpers.same_numbers after.json
    python -m tests.helpers.same_numbers --compare before.json after.json

The runs are the real scripts on data/sample in fp32 on the CPU: the demo, five steps with each technique, both options
of classifier.py, and a run that is stopped and resumed. A record holds, for each run, the SHA-256 of every tensor of
best.pt, of every prediction file, and the lines of metrics.jsonl without times. About 20 minutes on one core.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import torch

from files.errors import Parser, UserError, run_script
from files.writing import atomic_write

ROOT = Path(__file__).resolve().parents[2]
# Of a line of metrics.jsonl: what depends on the clock, and epochs, which were counted from 0 until December 2026.
LEFT_OUT = ("seconds", "examples_per_second", "epoch")
ROWS = 40  # of each file of data/sample, in the runs of a few steps
SHORT = "--pretrained minilm --precision fp32 --seed 1 --epochs 2 --batch_size 8 --option finetune --lr 1e-4 "
FIVE = SHORT + "--pooling mean --max_steps 5 --log_every 1"
JOINT = "--schedule round-robin:end=longest "
FEW_TRAINED = "--param_groups no-decay --lr 1e-3 --adapt "

# One run of five steps for each technique, whatever folder it is in; the flags mean the same before and after.
TECHNIQUES = (
    "", "--schedule round-robin:end=shortest", JOINT, "--schedule round-robin:end=balanced",
    "--schedule round-robin:end=longest,order=para+sts+sst", "--schedule sqrt", "--schedule temperature:alpha=0.7",
    "--schedule annealed", "--schedule staged:first=para", "--schedule even",
    JOINT + "--gradient pcgrad", JOINT + "--gradient gradvac", JOINT + "--gradient cagrad",
    JOINT + "--task_weights fixed:sst=2", JOINT + "--task_weights uncertainty", JOINT + "--task_weights loss-scale",
    JOINT + "--task_weights dwa --max_steps 12",
    "--loss sst=ce:smoothing=0.1", "--loss sst=ordinal", "--loss sst=one-versus-rest", "--loss sst=focal",
    "--loss sts=cosine", "--loss sts=mse sts=cosine-embedding:weight=0.5", "--loss sts=mse sts=pearson",
    "--loss para=bce para=mnrl:weight=0.1", "--loss sst=ce sst=simcse:weight=0.1",
    "--loss para=bce para=simcse-supervised:weight=0.1",
    "--penalty rdrop", "--penalty smart", "--penalty bregman", "--penalty fgm", "--penalty smart --penalty bregman",
    "--penalty l2sp --weight_decay 0",
    "--pooling cls", "--pooling max", "--pooling attention", "--pooling layers", "--pooling pooler",
    "--heads mlp:hidden=0", "--heads sst=mlp:activation=selu,hidden=2", "--heads para=relational sts=relational",
    "--pair_encoding bi --pair_score product", "--pair_encoding bi", "--pair_encoding sts=bi --pair_score cosine",
    "--pair_order both", "--dropout attention=0 --dropout head=0.2", "--ema 0.9",
    *(FEW_TRAINED + spec for spec in (
        "lora", "lora:rank=4,rslora=true,layers=last-2", "dora", "adapters", "adapters:style=pfeiffer", "prefix",
        "prefix:reparameterize=true", "prompt", "prompt:encoder=mlp", "ia3", "bitfit", "diff:rate=350", "last-linear",
        "freeze:layers=first-3", "gradual-unfreezing:per_epoch=2")),
    *("--adapt " + spec for spec in (
        "pals", "task-layers:top=1", "extra-attention", "extra-layers", "layer-drop", "remove-layers:keep=first-4",
        "mixout:p=0.1")),
    "--norm rmsnorm", "--ffn swiglu", "--ffn geglu:width=1024", "--ffn gelu:width=768", "--attention mha:heads=24",
    "--attention mqa", "--attention gqa:groups=4", "--positions relative", "--positions relative:by=clipped,largest=16",
    "--positions rotary", "--positions alibi",
    "--param_groups flat", "--param_groups layerwise:decay=0.85,head=10",
    "--param_groups per-layer:rates=1e-5+2e-5+3e-5+5e-5+7e-5+1e-4+1e-4",
    "--compile none", "--attention_backend unpadded", "--accumulate 2", "--option pretrain --lr 1e-3",
    "--option pretrain --lr 1e-3 --pair_encoding bi", "--save trained --adapt lora", "--task_batch_size para=16",
    "--train_rows 50%", "--truncation head+tail --max_length 12", "--per_task_epochs 1", "--tasks sts",
)


def short_data(folder):
    """Fill `folder` with the first ROWS rows of each file of data/sample, and SST's also as CFIMDB's; return it."""
    for source in sorted((ROOT / "data" / "sample").glob("*.csv")):
        with open(source, encoding="utf-8") as file:
            lines = list(islice(file, ROWS + 1))
        names = {source.name, source.name.replace("ids-sst", "ids-cfimdb")}
        for name in names:
            kept = [line for line in lines if "cfimdb" not in name or "test" in name
                    or not line.rstrip()[-1].isdigit() or line.rstrip()[-1] in "01"]
            with atomic_write(folder / name) as file:
                file.writelines(kept)
    return folder


def runs(data):
    """Yield (name, [command lines carried out one after the other in one folder])."""
    yield "demo", ["multitask_classifier.py --demo --precision fp32 --seed 1"]
    # A resumed run repeats no flag, and is given more steps than it had.
    part = f"{SHORT} --pooling mean --data_dir {data} --ema 0.9 --penalty rdrop --log_every 1 --eval_every 3"
    yield "resumed", [f"multitask_classifier.py {part} --run_dir runs/a --max_steps 4",
                      "multitask_classifier.py --resume --run_dir runs/a --max_steps 9"]
    for option, lr in (("pretrain", "1e-3"), ("finetune", "1e-4")):
        yield f"classifier {option}", [
            f"classifier.py --option {option} --lr {lr} --pretrained minilm --precision fp32 --seed 1 --epochs 1 "
            f"--data_dir {data} --max_steps 5 --log_every 1"]
    for flags in TECHNIQUES:
        yield flags or "base", [f"multitask_classifier.py {FIVE} --data_dir {data} {flags}"]


def digests(folder):
    """Return all that a run left in `folder` and that must repeat: tensors of best.pt, predictions, metrics."""
    found = {}
    for path in sorted(folder.rglob("best.pt")):
        for name, tensor in sorted(torch.load(path, weights_only=True)["model"].items()):
            digest = hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
            found[f"{path.relative_to(folder)} {name}"] = digest
    for path in sorted(folder.rglob("predictions/**/*.csv")):
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("metrics.jsonl")):
        for i, line in enumerate(path.read_text().splitlines()):
            fields = {key: value for key, value in json.loads(line).items() if key not in LEFT_OUT}
            found[f"{path.relative_to(folder)} line {i + 1}"] = json.dumps(fields, sort_keys=True)
    return found


def record(root, only):
    """Return {run: digests} of the runs with the code in `root`; raises UserError with the output of one that fails."""
    results = {}
    with tempfile.TemporaryDirectory() as data:
        short_data(Path(data))
        for name, commands in runs(data):
            if only and only not in name:
                continue
            with tempfile.TemporaryDirectory() as folder:
                for command in commands:
                    script, *flags = command.split()
                    done = subprocess.run([sys.executable, root / script, *flags], cwd=folder, text=True, check=False,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                          env={**os.environ, "OMP_NUM_THREADS": "1"})
                    if done.returncode:
                        raise UserError(f"{command} ended with {done.returncode}: {done.stdout[-2000:]}")
                results[name] = digests(Path(folder))
                print(f"{name}: {len(results[name])} values", flush=True)
    return results


def differences(before, after):
    """Return a line for each run of which something differs between two records, or which only one of them has."""
    lines = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            lines.append(f"{name}: only {'before' if name in before else 'after'}")
            continue
        one, two = before[name], after[name]
        differing = [key for key in dict.fromkeys([*one, *two]) if one.get(key) != two.get(key)]
        if differing:
            lines.append(f"{name}: {len(differing)} of {len(one)} values differ, {'; '.join(differing[:3])}")
    return lines


def main(argv=None):
    """Write a record, or compare two; comparing ends with 1 where they differ."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the record to write, or two to compare")
    parser.add_argument("--compare", action="store_true", help="compare two records, and run nothing")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="the checkout whose scripts are run")
    parser.add_argument("--only", metavar="TEXT", help="only the runs whose flags contain this text")
    args = parser.parse_args(argv)
    if len(args.files) != 1 + args.compare:
        parser.error("name one file to write, or with --compare two to compare")
    if not args.compare:
        with atomic_write(args.files[0]) as file:
            json.dump(record(args.root.resolve(), args.only), file, indent=1)
        return
    before, after = (json.loads(path.read_text()) for path in args.files)
    lines = differences(before, after)
    values = sum(map(len, after.values()))
    print("\n".join(lines) or f"{len(after)} runs, {values} values: all equal")
    sys.exit(bool(lines))


if __name__ == "__main__":
    run_script(main)
