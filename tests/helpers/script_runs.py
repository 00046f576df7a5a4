"""Run multitask_classifier.py in processes of its own that cost no start-up, and tell whether two runs ended alike.

`python -m tests.helpers.script_runs` imports the script once and forks a child for each run that its standard input
asks for.
"""

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# For `before`, after .format(step=N): the run gets SIGTERM once it has taken step N.
STOP_AFTER = """
import os, signal
from engine import loop
step = loop.Training.step
def stopping(self):
    step(self)
    if self.standing.step == {step}:
        os.kill(os.getpid(), signal.SIGTERM)
loop.Training.step = stopping
"""


def serve():
    """Fork a child for each line of standard input; answer with its process id, and with its exit code at its end."""
    import torch._dynamo  # noqa: F401 - torch's optimizers import it, which takes longer than a tiny run

    import multitask_classifier
    from files.errors import run_script

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches pytest, which then closes the input
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            code = 1
            try:
                os.chdir(order["folder"])
                os.environ["MINBERT_CACHE"] = order["cache"]
                sys.argv = ["multitask_classifier.py", *order["flags"]]
                exec(order["before"], {"script": multitask_classifier})
                run_script(multitask_classifier.main)
                code = 0
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class ScriptServer:
    """The process that forks runs of the script, one at a time."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.script_runs"], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, bufsize=0, env={**os.environ, "OMP_NUM_THREADS": "1", "MINBERT_HUB": "http://127.0.0.1:9"})
        self.pid = self.cache = None

    def start(self, folder, *flags, before=""):
        """Begin a run in `folder`, whose output goes to log.txt there; `before` is code to execute in it first."""
        self.log = Path(folder) / "log.txt"
        self.log.unlink(missing_ok=True)
        order = {"folder": str(folder), "flags": flags, "log": str(self.log), "before": before,
                 "cache": str(self.cache)}
        self.process.stdin.write((json.dumps(order) + "\n").encode())
        self.pid = int(self.process.stdout.readline())

    def ended(self):
        """Tell whether the run has ended."""
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def wait(self):
        """Wait for the run's end; return (exit code, all that it printed)."""
        code = int(self.process.stdout.readline())
        self.pid = None
        return code, self.log.read_text()

    def run(self, folder, *flags, before=""):
        """Run to the end; return (exit code, all that it printed)."""
        self.start(folder, *flags, before=before)
        return self.wait()

    def signal_when(self, moment, signum):
        """Send the run a signal as soon as `moment()` is true; return (exit code, all that it printed)."""
        while not self.ended():
            if moment():
                os.kill(self.pid, signum)
                break
            time.sleep(0.0003)
        return self.wait()

    def close(self):
        """End the server and a run that is still there."""
        if self.pid is not None and not self.ended():
            os.kill(self.pid, signal.SIGKILL)
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@functools.cache
def server():
    """Return the one server of this process, which is a worker under `pytest -n`."""
    server = ScriptServer()
    atexit.register(server.close)
    return server


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a BERT of width 24 in bert/, the course's files with 20 rows each in data/, and a cache."""
    from tests.helpers.fixtures_tiny import tiny_bert_dir, write_course_files

    folder = tmp_path_factory.mktemp("runs")
    write_course_files(folder / "data", rows=20)
    tiny_bert_dir(folder / "bert", hidden_size=24, num_attention_heads=2)
    return folder


@pytest.fixture
def script(data):
    """The server, whose runs find their cache in `data`; a run that a failed test leaves is killed."""
    server().cache = data / "cache"
    yield server()
    if server().pid is not None:
        os.kill(server().pid, signal.SIGKILL)
        server().wait()


RUN = "runs/one"


def flags_of(data, *more):
    """Return the flags of a run on `data`, deterministic, of 9 steps an epoch, with its folder in RUN."""
    return ["--data_dir", f"{data}/data", "--pretrained", f"{data}/bert", "--run_dir", RUN, "--precision", "fp32",
            "--batch_size", "8", "--lr", "1e-3", "--hidden_dropout_prob", "0.3", "--save_every", "2",
            "--log_every", "4", *more]


def metrics(run_dir):
    """Return the lines of metrics.jsonl, parsed, without the times in them."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in ("seconds", "examples_per_second")}
            for line in lines]


def checkpoint(path):
    """Return all of a checkpoint but the arguments, which may say --resume, and the length of a file with times."""
    import torch

    saved = torch.load(path, weights_only=True)
    del saved["args"]
    saved.get("training", {}).pop("metrics_bytes", None)
    return saved


def predictions(folder):
    """Return the prediction files that runs in `folder` wrote, {name: bytes}."""
    return {path.name: path.read_bytes() for path in sorted((Path(folder) / "predictions").glob("*.csv"))}


def outcome(folder, run_dir=RUN):
    """Return everything that a run in `folder` left behind and that must repeat: weights, metrics, predictions."""
    run_dir = Path(folder) / run_dir
    return {"best.pt": checkpoint(run_dir / "best.pt"), "last.pt": checkpoint(run_dir / "last.pt"),
            "metrics": metrics(run_dir), "predictions": predictions(folder)}


def difference(one, other, where=""):
    """Return where two nested values first differ in a bit, or None."""
    import torch

    if type(one) is not type(other):
        return f"{where}: {type(one)} and {type(other)}"
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, other) else f"{where}: tensors"
    if isinstance(one, dict):
        if list(one) != list(other):
            return f"{where}: keys {list(one)} and {list(other)}"
        pairs = [(name, one[name], other[name]) for name in one]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{where}: {len(one)} and {len(other)} entries"
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other or one != one and other != other else f"{where}: {one} and {other}"
    return next((found for name, a, b in pairs if (found := difference(a, b, f"{where}/{name}"))), None)


if __name__ == "__main__":
    serve()
