"""Files that do harm to whoever reads them, and a process apart that reads them: what it says, takes and allocates.

    python -m tests.hostile     answers each line {"load": one of LOADERS, "path": ...} on stdin with one on stdout
"""

import atexit
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from functools import cache
from pathlib import Path

import torch

ROOM = 2**30  # bytes of address space that a case has beyond what the imports took
SECONDS, MIB = 5, 500  # what a refusal may take; the first is a second on an idle machine


class Payload:
    """What a pickle may hold: a function to call while it is being read, here one that makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def save_hostile(path, touched, key="extra", **options):
    """Save {key: payload, other tensors} to `path`; whoever unpickles all of it creates the file `touched`.

    Proves it before it returns, with `touched` gone again. `options` are those of torch.save.
    """
    torch.save({"pooler.dense.bias": torch.zeros(12), key: Payload(touched)}, path, **options)
    torch.load(path, weights_only=False)[key].close()  # on purpose
    touched.unlink()


class Call:
    """What a pickle holds in place of an object: `function(*arguments)`, called by whoever reads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stored:
    """A storage of a torch file: `count` float32 in its record `name`."""

    def __init__(self, count, name="0"):
        self.id = ("storage", torch.FloatStorage, name, "cpu", count)


def tensor(count, size, stride, offset=0):
    """Return what torch.save writes for a view of the storage of `count` numbers in record "0"."""
    return Call(torch._utils._rebuild_tensor_v2, Stored(count), offset, size, stride, False, {})


def write_torch(path, value, records, compression=zipfile.ZIP_STORED, comment=b""):
    """Write a file as torch.save does: a value that holds `tensor`s, and the bytes of their records, {name: bytes}."""
    content = io.BytesIO()
    pickler = type("Pickler", (pickle.Pickler,), {"persistent_id": lambda self, item: getattr(item, "id", None)})
    pickler(content, 2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = comment
        archive.writestr("a/data.pkl", content.getvalue(), compression)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
        for name, data in records.items():
            archive.writestr(f"a/data/{name}", data, compression)


def refused(load, path, record, given, expected, folder):
    """Return the message with which the project's `load` refuses a file, recorded with its time and its memory."""
    seen = outcome(load, path)
    assert seen["kind"] == "UserError", seen
    assert seen["seconds"] < SECONDS and seen["mib"] < MIB, seen
    assert not re.search("MemoryError|allocate", seen["cause"]), seen  # by a check, not by this process's limit
    assert "weights_only" not in seen["message"] and "allow_pickle" not in seen["message"]
    record("Hostile files", given, expected, seen["message"], seconds=seen["seconds"], mib=seen["mib"], folder=folder)
    return seen["message"]


def outcome(load, path):
    """Return {kind, message, cause, seconds, mib}: what came of reading a file in a process apart."""
    process = server()
    process.stdin.write(json.dumps({"load": load, "path": str(path)}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@cache
def server():
    """Return the process that answers, begun once."""
    process = subprocess.Popen([sys.executable, "-m", "tests.helpers.hostile"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
                               env={**os.environ, "OMP_NUM_THREADS": "1", "MINBERT_HUB": "http://127.0.0.1:9"})
    atexit.register(lambda: process.communicate())
    return process


def memory(what):
    """Return a size of this process in MiB: VmRSS now, VmHWM at most, VmSize of its addresses; 0 where not told."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0)


def reset_peak():
    """Let VmHWM begin at this moment's VmRSS, where the system can; return that in MiB."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def causes(error):
    """Return the errors of which an error was made, as text."""
    return "" if error is None else f"{error!r} {causes(error.__cause__ or error.__context__)}"


def examine(load, path):
    """Call `load(path)` in a child of this process; return {kind, message, cause, seconds, mib}."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        before, start = reset_peak(), time.perf_counter()
        if memory("VmSize"):
            resource.setrlimit(resource.RLIMIT_AS, (int(memory("VmSize") * 2**20) + ROOM, resource.RLIM_INFINITY))
        try:
            kind, message, cause = "", str(load(path))[:500], ""
        except BaseException as error:
            kind, message, cause = type(error).__name__, str(error), causes(error.__cause__)[:9000]
        seen = {"kind": kind, "message": message, "cause": cause, "seconds": time.perf_counter() - start,
                "mib": max(0, memory("VmHWM") - before)}
        os.write(writing, json.dumps(seen).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    nothing = {"kind": f"status {status}", "message": "", "cause": "", "seconds": 20, "mib": 0}
    return json.loads(answer) if answer else nothing


def main():
    """Answer the questions on stdin."""
    import optimizer_test
    import sanity_check
    from bert import BertModel
    from engine.checkpoint import load_checkpoint
    from tokenizer import BertTokenizer

    def test_optimizer(path):
        optimizer_test.REFERENCE = path
        return optimizer_test.load_reference()

    def check_sanity(path):
        sanity_check.DATA = path
        return sanity_check.main([])

    loaders = {"model": BertModel.from_pretrained, "tokenizer": BertTokenizer.from_pretrained,
               "checkpoint": load_checkpoint, "optimizer_test": test_optimizer, "sanity_check": check_sanity}
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(examine(loaders[question["load"]], question["path"])), flush=True)


if __name__ == "__main__":
    main()
