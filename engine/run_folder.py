"""The folder of a run: its arguments and commit, its metrics, the checkpoint to go on from, and a lock on all of it."""

import argparse
import glob
import json
import os
import platform
import shutil
import subprocess
from contextlib import contextmanager
from functools import cache
from itertools import count
from types import SimpleNamespace

import numpy as np
import torch
from filelock import FileLock, Timeout

from engine.distributed import is_main, launch, world_size
from files.errors import UserError, remedy
from files.json_object import read_json
from files.writing import atomic_write

# Of args.json. Format 1, until December 2026, had other defaults: see `upgraded`.
FORMAT = 2


def plain(value):
    """Return a configuration as plain dicts, lists and scalars, which `weights_only=True` reads."""
    if isinstance(value, (argparse.Namespace, SimpleNamespace)):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (bool, int, float, str, torch.Tensor, type(None))) else str(value)


def beside_checkpoint(filepath):
    """Return the name of the file that records a checkpoint's arguments."""
    return os.path.splitext(filepath)[0] + ".json"


@cache
def environment():
    """Return the commit and the versions that a result depends on."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    commit = None
    if shutil.which("git"):
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=root,
                                capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit or None, "torch": torch.__version__, "python": platform.python_version()}


def upgraded(args):
    """Return the arguments of a run of format 1 as they are written now, with the meaning that they had."""
    name, _, options = str(args.get("schedule")).partition(":")
    if name != "round-robin" or "end=" in options:
        return args
    return {**args, "schedule": ",".join(filter(None, ("round-robin:end=shortest", options)))}


class Run:
    """The folder of one run: args.json, metrics.jsonl and last.pt, beside best.pt; without a folder, nothing is kept.

    A line of metrics.jsonl is a log point or a scoring. last.pt knows how long the file was, so that a resumed
    run cuts the lines past it and writes them again.
    """

    def __init__(self, folder):
        self.folder = folder
        self.last, self.metrics, self.arguments = (
            os.path.join(folder, name) if folder else None for name in ("last.pt", "metrics.jsonl", "args.json"))
        self.lock = f"{os.path.abspath(folder)}.lock" if folder else None  # beside it: the folder may move aside

    def stored_arguments(self):
        """Return {"args": resolved arguments, "given": those of the command line, "launch": torchrun's or None}.

        The dicts are empty before the first run.
        """
        if not self.folder or not os.path.isfile(self.arguments):
            return {"args": {}, "given": {}, "launch": None}
        advice = "name the flags of the run again without --resume, in another --run_dir"
        stored = read_json(self.arguments, advice)
        try:
            args, given = dict(stored["args"]), dict(stored["args"].get("given") or {})
            if stored.get("format", 1) < FORMAT:
                args, given = upgraded({"max_tokens": 8192, **args}), upgraded(given)
            return {"args": args, "given": given, "launch": stored.get("launch")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.arguments} is damaged ({error}); {advice}") from error

    def paths(self):
        """Return the files that a run writes into the folder, but for the best checkpoint."""
        return [os.path.join(self.folder, name) for name in (
            "last.pt", "last.json", "metrics.jsonl", "args.json", "diverged.json")] if self.folder else []

    @contextmanager
    def writing(self, path):
        """Return the context in which a failure to write `path` becomes one UserError, with what is still there."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of what the file raised
            whole = self.last and os.path.exists(self.last)
            kept = f"; {self.last} is whole, --resume goes on from it" if whole else ""
            cause = error
            while cause.__context__ is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            reason = getattr(cause, "strerror", None) or error
            how = remedy(cause) if getattr(cause, "errno", None) else "make room there"
            raise UserError(f"{path} cannot be written ({reason}): {how}{kept}") from error

    @contextmanager
    def locked(self):
        """Return the context in which no other process trains in this folder; raises UserError if one does."""
        if not self.folder or not is_main():
            yield
            return
        os.makedirs(os.path.dirname(self.lock), exist_ok=True)
        lock = FileLock(self.lock, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"another process trains in {self.folder} right now; wait for it, or name another "
                            "--run_dir") from error
        try:
            yield
        finally:
            lock.release()

    def require_free(self):
        """Raise UserError if another process trains in this folder; the lock of a dead one does not count."""
        if self.folder and os.path.exists(self.lock):
            with self.locked():
                pass

    def begin(self, args, device):
        """Make the folder and write args.json.

        A finished run there gives way: its best.pt stays until this run has a better one. An unfinished or damaged
        one moves aside.
        """
        if self.folder and is_main():
            if os.path.exists(self.last) and not self.finished():
                aside = next(path for n in count(1) if not os.path.exists(path := f"{self.folder}.{n}"))
                os.rename(self.folder, aside)
                print(f"the unfinished run in {self.folder} is {aside} now; --resume --run_dir {aside} goes on with it")
            os.makedirs(self.folder, exist_ok=True)
            for path in (self.last, self.metrics):
                if os.path.exists(path):
                    os.remove(path)
            self.tidy()
            self.write_arguments(args, device)

    def finished(self):
        """Tell whether last.pt is that of a run that came to its end: last.json knows, whatever last.pt's size."""
        record = beside_checkpoint(self.last) if self.folder else ""
        try:
            return os.path.exists(record) and read_json(record).get("finished") is True
        except UserError:
            return False

    def tidy(self):
        """Remove the temporary files of a save that was killed."""
        if self.folder and is_main():
            for path in glob.glob(os.path.join(glob.escape(self.folder), ".*.tmp")):
                os.remove(path)

    def write_arguments(self, args, device):
        """Write args.json: the resolved arguments, commit, versions, device and number of processes."""
        if self.folder and is_main():
            with self.writing(self.arguments), atomic_write(self.arguments) as file:
                json.dump({"format": FORMAT, "args": plain(args), "device": device_name(device),
                           "processes": world_size(), "launch": launch(), **environment()},
                          file, indent=2, sort_keys=True)
                file.write("\n")

    def log(self, **fields):
        """Append one line to metrics.jsonl, whole or not at all."""
        if self.folder and is_main():
            before = os.path.getsize(self.metrics) if os.path.exists(self.metrics) else 0
            with self.writing(self.metrics):
                try:
                    with open(self.metrics, "a", encoding="utf-8") as file:
                        file.write(json.dumps(fields) + "\n")
                except OSError:
                    self.cut(before)
                    raise

    def length(self):
        """Return the size of metrics.jsonl in bytes, with all of it on the disk."""
        if not self.folder or not os.path.exists(self.metrics):
            return 0
        with self.writing(self.metrics), open(self.metrics, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, length):
        """Drop the lines of metrics.jsonl past `length` bytes."""
        if self.folder and is_main() and os.path.exists(self.metrics):
            os.truncate(self.metrics, min(length, os.path.getsize(self.metrics)))


def device_name(device):
    """Return what a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
