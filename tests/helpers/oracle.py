"""Run an oracle (transformers, peft) where this project is out of sight.

Such libraries look for Hugging Face's `datasets` and would find ours, so they run in a process of their own, which
searches neither the current folder nor PYTHONPATH for modules. It serves the whole test run: they are slow to import.
"""

import functools
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import torch

# Reads the name of a folder a line, runs code.py there, and answers with a line: nothing, or "failed".
WORKER = """
import sys, traceback, torch
answers, sys.stdout, memo = sys.stdout, sys.stderr, {}
for line in sys.stdin:
    folder = line.rstrip("\\n")
    try:
        scope = torch.load(f"{folder}/inputs.pt", weights_only=True)
        scope["memo"] = memo
        exec(compile(open(f"{folder}/code.py", encoding="utf-8").read(), "oracle code", "exec"), scope)
        torch.save(scope["result"], f"{folder}/result.pt")
        print(file=answers, flush=True)
    except Exception:
        with open(f"{folder}/error", "w", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        print("failed", file=answers, flush=True)
"""


@functools.cache
def worker():
    """Start the worker; it ends when this process does, because its standard input ends then."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
                   "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.Popen([sys.executable, "-I", "-c", WORKER], cwd=tempfile.gettempdir(), env=environment,
                            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run_oracle(code, **inputs):
    """Run Python `code`, in which `inputs` are variables, and return the value that it gives the variable `result`.

    Both are tensors, numbers, strings, None, and lists, tuples and dicts of these. The code also finds a dict `memo`,
    which holds from one call to the next what is slow to build. Raises RuntimeError, with the oracle's own traceback,
    when the code fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(inputs, Path(folder, "inputs.pt"))
        Path(folder, "code.py").write_text(textwrap.dedent(code), encoding="utf-8")
        print(folder, file=worker().stdin, flush=True)
        answer = worker().stdout.readline()
        if answer != "\n":
            error = Path(folder, "error")
            raise RuntimeError(error.read_text("utf-8") if error.exists() else "the oracle's process has ended")
        return torch.load(Path(folder, "result.pt"), weights_only=True)
