"""Checkpoints: tensor-only files, written whole or not at all, that need no flags repeated to be read."""

import argparse
import glob
import json
import os
import platform
import random
import shutil
import subprocess
from contextlib import contextmanager
from functools import cache
from itertools import count
from types import SimpleNamespace

import numpy as np
import torch
from filelock import FileLock, Timeout

from bert import BertModel
from config import BertConfig
from distributed import gather, is_main, launch, world_size
from files import UserError, atomic_write

# The spring 2024 edition's --fine-tune-mode and the --option it means.
FINE_TUNE_MODES = {"last-linear-layer": "pretrain", "full-model": "finetune"}


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


def read_config(config, **defaults):
    """Return a model's configuration, given as a namespace or as a loaded dict, completed by `defaults`."""
    given = config if isinstance(config, dict) else vars(config)
    if given.get("fine_tune_mode"):
        given = {"option": FINE_TUNE_MODES[given["fine_tune_mode"]], **given}
    return SimpleNamespace(**{"option": "finetune", "pretrained": "bert-base-uncased", "encoder_dropout_prob": 0.1,
                              **defaults, **given})


def load_encoder(config):
    """Return the BERT of a model configuration, frozen when `config.option` is "pretrain".

    The weights are `config.pretrained`'s, unless `config.bert_config` (stored in every checkpoint) gives
    the architecture: then the weights are random and are to be loaded from the checkpoint.
    """
    stored = getattr(config, "bert_config", None)
    if stored is not None:
        bert = BertModel(BertConfig.from_dict(stored))
    else:
        bert = BertModel.from_pretrained(config.pretrained, hidden_dropout_prob=config.encoder_dropout_prob,
                                         attention_probs_dropout_prob=config.encoder_dropout_prob)
    return bert.requires_grad_(config.option != "pretrain")


def random_states():
    """Return the states of Python's, numpy's and torch's random numbers as plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "system_rng": plain(random.getstate()),
        "numpy_rng": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch_rng": torch.random.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(states):
    """Put the random numbers back to where `random_states` found them."""
    version, state, gauss = states["system_rng"]
    random.setstate((version, tuple(state), gauss))
    name, keys, *rest = states["numpy_rng"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(states["torch_rng"])
    if states["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda_rng"])


def save_model(model, optimizer, args, config, filepath, **more):
    """Write model, optimizer, arguments, architecture and random states (and `more`) to `filepath`, atomically.

    Beside it, `filepath` with .json for its suffix records the arguments, the commit and the versions. Of
    several processes the main one writes. Raises UserError when the file cannot be written whole; what was
    there before is then still there.
    """
    states = gather(random_states())
    if not is_main():
        return
    contents = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "args": plain(args),
        "model_config": {**plain(config), "bert_config": plain(model.bert.config.to_dict())},
        **{name: states[0][name] for name in ("system_rng", "numpy_rng", "torch_rng")},
    }
    if more:  # a checkpoint to go on from
        contents.update(more, processes_rng=states)
    try:
        with atomic_write(filepath, "wb") as file:
            torch.save(contents, file)
        with atomic_write(os.path.splitext(filepath)[0] + ".json") as file:
            json.dump({"args": contents["args"], **environment()}, file, indent=2, sort_keys=True)
            file.write("\n")
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of what the file raised
        last = Run(getattr(args, "run_dir", None)).last
        kept = f"; {last} is whole, --resume goes on from it" if last and os.path.exists(last) else ""
        raise UserError(f"{filepath} cannot be written ({error}): make room{kept}") from error
    if not more:
        print(f"save the model to {filepath}")


@cache
def environment():
    """Return the commit and the versions that a result depends on."""
    root = os.path.dirname(os.path.abspath(__file__))
    commit = None
    if shutil.which("git"):
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=root,
                                capture_output=True, text=True, check=False).stdout.strip()
    return {"commit": commit or None, "torch": torch.__version__, "python": platform.python_version()}


def load_checkpoint(filepath):
    """Read a checkpoint onto the CPU, refusing anything but tensors and plain values.

    Raises UserError when the file is absent or is no checkpoint of this project.
    """
    if not os.path.isfile(filepath):
        raise UserError(f"no checkpoint {filepath}; train first, or name one with --filepath")
    try:
        saved = torch.load(filepath, map_location="cpu", weights_only=True)
        return {**saved, **{name: saved[name] for name in ("model", "optim", "args", "model_config")}}
    except Exception as error:  # whatever a damaged or hostile file provokes; torch's message would advise to trust it
        raise UserError(f"{filepath} is not a checkpoint of this project, or is damaged; train again") from error


def with_stored(args, saved, names):
    """Return `args` with the named arguments as the checkpoint stored them, so that none need be repeated."""
    stored = {name: saved["args"][name] for name in names if name in saved["args"]}
    return argparse.Namespace(**{**vars(args), **stored})


class Run:
    """The folder of one run: args.json, metrics.jsonl and last.pt, beside best.pt; without a folder, nothing is kept.

    A line of metrics.jsonl is a log point or a scoring. last.pt knows how long the file was, so that a resumed
    run cuts the lines past it and writes them again.
    """

    def __init__(self, folder):
        self.folder = folder
        self.last, self.metrics, self.arguments = (
            os.path.join(folder, name) if folder else None for name in ("last.pt", "metrics.jsonl", "args.json"))

    def stored_arguments(self):
        """Return {"args": resolved arguments, "given": those of the command line, "launch": torchrun's or None}.

        The dicts are empty before the first run.
        """
        if not self.folder or not os.path.isfile(self.arguments):
            return {"args": {}, "given": {}, "launch": None}
        try:
            with open(self.arguments, encoding="utf-8") as file:
                stored = json.load(file)
            return {"args": dict(stored["args"]), "given": dict(stored["args"].get("given") or {}),
                    "launch": stored.get("launch")}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.arguments} is damaged ({error}); name the flags of the run again without "
                            "--resume, in another --run_dir") from error

    @contextmanager
    def locked(self):
        """Return the context in which no other process trains in this folder; raises UserError if one does."""
        if not self.folder or not is_main():
            yield
            return
        os.makedirs(os.path.dirname(os.path.abspath(self.folder)), exist_ok=True)
        lock = FileLock(f"{os.path.abspath(self.folder)}.lock", timeout=0)  # beside it: the folder may move aside
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"another process trains in {self.folder} right now; wait for it, or name another "
                            "--run_dir") from error
        try:
            yield
        finally:
            lock.release()

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
        """Tell whether last.pt is that of a run that came to its end."""
        try:
            return load_checkpoint(self.last)["training"]["finished"]
        except (UserError, KeyError):
            return False

    def tidy(self):
        """Remove the temporary files of a save that was killed."""
        if self.folder and is_main():
            for path in glob.glob(os.path.join(glob.escape(self.folder), ".*.tmp")):
                os.remove(path)

    def write_arguments(self, args, device):
        """Write args.json: the resolved arguments, commit, versions, device and number of processes."""
        if self.folder and is_main():
            with atomic_write(self.arguments) as file:
                json.dump({"args": plain(args), "device": device_name(device), "processes": world_size(),
                           "launch": launch(), **environment()}, file, indent=2, sort_keys=True)
                file.write("\n")

    def log(self, **fields):
        """Append one line to metrics.jsonl."""
        if self.folder and is_main():
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")

    def length(self):
        """Return the size of metrics.jsonl in bytes, with all of it on the disk."""
        if not self.folder or not os.path.exists(self.metrics):
            return 0
        with open(self.metrics, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, length):
        """Drop the lines of metrics.jsonl past `length` bytes."""
        if self.folder and is_main():
            with open(self.metrics, "ab") as file:
                file.truncate(min(length, file.tell()))


def device_name(device):
    """Return what a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {platform.machine()}"
