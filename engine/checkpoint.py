"""Checkpoints: tensor-only files, written whole or not at all, that need no flags repeated to be read."""

import hashlib
import json
import os
import random
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from base_bert import load_pickle
from engine.cpu import peak_memory
from engine.distributed import gather, is_main
from engine.model_config import check_stored
from engine.run_folder import Run, beside_checkpoint, environment, plain
from extensions.encoder import loaded_parameters, techniques_of
from files.errors import UserError, lacks_memory
from files.writing import atomic_write, existing_folder, is_device, require_writable


def random_states():
    """Return the states of Python's, numpy's and torch's random numbers as plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "system_rng": plain(random.getstate()),
        "numpy_rng": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch_rng": torch.random.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
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

    Beside it, `filepath` with .json for its suffix records the arguments, the commit and the versions, and of a
    checkpoint to go on from whether its run has finished. Of several processes the main one writes. Raises UserError
    when the file cannot be written whole; what was there before is then still there.
    """
    states = gather(random_states())
    if not is_main():
        return
    contents = {
        **weights_of(model, config, leave_out=getattr(args, "save", "all") == "trained"),
        "optim": optimizer.state_dict(),
        "args": plain(args),
        **{name: states[0][name] for name in ("system_rng", "numpy_rng", "torch_rng")},
    }
    if "base" in contents and not more:
        contents["optim"] = {}  # nothing that reads it goes on from it
    record = {"args": contents["args"], **environment(), **costs(model, optimizer),
              "reports": [technique.report(model) for technique in techniques_of(model, "report")]}
    with Run(getattr(args, "run_dir", None)).writing(filepath):
        if more:  # a checkpoint to go on from
            contents.update(more, processes_rng=states)
            record["finished"] = more["training"].get("finished", False)
            Path(beside_checkpoint(filepath)).unlink(missing_ok=True)  # it must not tell of another checkpoint
        with atomic_write(filepath, "wb") as file:
            torch.save(contents, file)
        with atomic_write(beside_checkpoint(filepath)) as file:
            json.dump(record, file, indent=2, sort_keys=True)
            file.write("\n")
    if not more:
        print(f"save the model to {filepath}")


def frozen_names(model):
    """Return the names of the parameters of a model's encoder that are the pretrained ones and stay so, a set."""
    altered = vars(model.bert).get("altered", ())
    frozen = {id(p) for p in loaded_parameters(model.bert) if not p.requires_grad} - set(altered)
    return {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in frozen}


def fingerprint(model, names):
    """Return the SHA-256 of the parameters of these names."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(model.get_parameter(name).detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_of(model, config, leave_out=False):
    """Return what a checkpoint keeps of a model: "model", its weights, and "model_config", which says how to make it.

    With `leave_out` the pretrained weights that training leaves alone are not among them: "base" tells what they were,
    and they are loaded again. Raises UserError for a model whose adapters are merged: it is another architecture's.
    """
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise UserError("the model's adapters are merged into its weights: unmerge(model) before saving a checkpoint, "
                        "or export the encoder by model.bert.save_pretrained(FOLDER)")
    config = {**plain(config), "bert_config": plain(model.bert.config.to_dict())}
    if not (leave_out and frozen_names(model)):
        return {"model": model.state_dict(), "model_config": config}
    left_out = frozen_names(model)
    del config["bert_config"]
    return {"model": {name: tensor for name, tensor in model.state_dict().items() if name not in left_out},
            "model_config": config, "base": fingerprint(model, left_out)}


def load_weights(model, saved):
    """Put a checkpoint's weights into a model; UserError if those it leaves out are not those that it was trained with.

    The encoder remembers which of its pretrained weights are others now: a checkpoint must not leave those out. Raises
    RuntimeError, as load_state_dict does, for weights that do not fit.
    """
    loaded = {id(p) for p in loaded_parameters(model.bert)}
    altered = [id(p) for name, p in model.named_parameters(remove_duplicate=False)
               if id(p) in loaded and name in saved["model"] and not p.detach().cpu().equal(saved["model"][name])]
    model.bert.altered = sorted({*vars(model.bert).get("altered", ()), *altered})
    if "base" not in saved:
        model.load_state_dict(saved["model"])
        return
    left_out = {name for name, p in model.named_parameters(remove_duplicate=False)
                if id(p) in loaded and name not in saved["model"]}
    model.load_state_dict({**{name: model.get_parameter(name) for name in left_out}, **saved["model"]})
    if fingerprint(model, left_out) != saved["base"]:
        raise UserError(f"the checkpoint goes with other weights than those of {model.config.pretrained} here: "
                        "it was saved with --save trained, without what it did not train; fetch those weights again")


def begin_with(model, filepath, names):
    """Load the weights of a checkpoint into a model.

    Raises UserError where they do not fit; it tells which of the settings `names` differ.
    """
    saved = load_checkpoint(filepath)
    try:
        load_weights(model, saved)
    except RuntimeError as error:
        theirs = vars(model.settings(saved["model_config"]))
        differing = [f"--{name} {theirs[name]} there, {value} here" for name, value in vars(model.config).items()
                     if name in names and theirs[name] != value]
        raise UserError(f"--init {filepath} is of another model ({'; '.join(differing) or error}): give this run the "
                        "flags of that one") from error


def load_model(kind, saved, filepath, device, **changes):
    """Return the model of a checkpoint, of class `kind`, on a device; `changes` are settings in place of the stored."""
    with restoring(filepath):
        model = kind({**saved["model_config"], **changes})
        load_weights(model, saved)
    print(f"load model from {filepath}")
    return model.to(device)


def take_up(model, run_dir):
    """Load the weights of a run's last checkpoint; return whether there is one.

    `fit` does so too, but later than features and teachers are made of frozen weights.
    """
    last = Run(run_dir).last
    if not os.path.exists(last or ""):
        return False
    with restoring(last):
        load_weights(model, load_checkpoint(last))
    return True


def checkpoint_bytes(model, save, ema):
    """Return about how large best.pt and last.pt will be.

    Both hold the weights and, of those that are trained, AdamW's two moments; last.pt the average of --ema too.
    """
    left_out = frozen_names(model) if save == "trained" else ()
    weights = sum(tensor.numel() * tensor.element_size() for name, tensor in model.state_dict().items()
                  if name not in left_out)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights + 2 * trained, weights + (3 if ema else 2) * trained


def require_room(model, filepath, run_dir, save="all", ema=0.0, resume=False):
    """Raise UserError, with the numbers, unless the run's checkpoints can be written and their disk has room for them.

    Each is written whole beside the one that it replaces.
    """
    run = Run(run_dir)
    if not is_main():
        return
    require_writable([filepath])
    disks = {}  # number of a file system -> a folder on it, the sizes of the files there, the bytes that they replace
    for path, size in zip((filepath, run.last), checkpoint_bytes(model, save, ema), strict=True):
        if path and not is_device(path):
            folder = existing_folder(path)
            _, sizes, replaced = disks.setdefault(os.stat(folder).st_dev, (folder, [], []))
            sizes.append(size)
            replaced.append(os.path.getsize(path) if os.path.exists(path) else 0)
    for folder, sizes, replaced in disks.values():
        needed, free = sum(sizes) + max(sizes), shutil.disk_usage(folder).free
        if needed > free and (resume or not run.folder or run.finished()):  # an unfinished run moves aside, stays
            needed -= sum(replaced)
        if needed > free:
            raise UserError(
                f"not enough room in {folder}: the run's checkpoints take {needed / 2**20:.0f} MiB "
                f"({' + '.join(f'{size / 2**20:.0f}' for size in sizes)}, and the largest once more while it is "
                f"written), and {free / 2**20:.0f} MiB are free; make room, name a --run_dir on another disk, or keep "
                "the best weights alone with --filepath PATH in place of --run_dir")


def costs(model, optimizer):
    """Return the number of parameters, of those that are trained, and the most memory that this process had so far."""
    return {"parameters": sum(p.numel() for p in model.parameters()),
            "peak_bytes": peak_memory(next(model.parameters()).device.type),
            "trained": sum(p.numel() for group in optimizer.param_groups for p in group["params"])}


def load_checkpoint(filepath):
    """Read a checkpoint onto the CPU, refusing anything but tensors and plain values.

    Raises UserError when the file is absent or is no checkpoint of this project.
    """
    if not os.path.isfile(filepath):
        raise UserError(f"no checkpoint {filepath}; train first, or name a file that is there")
    try:
        saved = load_pickle(filepath, "Train again.")
        parts = {name: dict(saved[name]) for name in ("model", "optim", "args", "model_config")}
        saved = {**saved, **parts}
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{filepath} is not a checkpoint of this project, or is damaged; train again") from error
    check_stored(filepath, saved)
    return saved


@contextmanager
def restoring(filepath):
    """Return the context in which a model or a run is made of what a checkpoint holds; UserError if it does not fit."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise UserError(f"{filepath} does not hold what its own settings, or this run, need ({type(error).__name__}: "
                        f"{' '.join(str(error).split())[:500]}); train again") from error


def with_stored(args, saved, names):
    """Return `args` with the named arguments as the checkpoint stored them, so that none need be repeated."""
    stored = {name: saved["args"][name] for name in names if name in saved["args"]}
    return type(args)(**{**vars(args), **stored})
