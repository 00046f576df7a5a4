"""Checkpoints: tensor-only files, written whole or not at all, that need no flags repeated to be read."""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import torch

from bert import BertModel
from config import BertConfig
from utils import UserError, atomic_write

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
    }


def save_model(model, optimizer, args, config, filepath):
    """Write model, optimizer, arguments, architecture and random states to `filepath`, atomically.

    Beside it, `filepath` with .json for its suffix records the arguments, the commit and the versions.
    Optimizer and random states are what going on from here takes; nothing reads them yet.
    """
    contents = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "args": plain(args),
        "model_config": {**plain(config), "bert_config": plain(model.bert.config.to_dict())},
        **random_states(),
    }
    with atomic_write(filepath, "wb") as file:
        torch.save(contents, file)
    with atomic_write(os.path.splitext(filepath)[0] + ".json") as file:
        json.dump({"args": contents["args"], **environment()}, file, indent=2, sort_keys=True)
        file.write("\n")
    print(f"save the model to {filepath}")


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
        return {name: saved[name] for name in ("model", "optim", "args", "model_config")}
    except Exception as error:  # whatever a damaged or hostile file provokes; torch's message would advise to trust it
        raise UserError(f"{filepath} is not a checkpoint of this project, or is damaged; train again") from error


def with_stored(args, saved, names):
    """Return `args` with the named arguments as the checkpoint stored them, so that none need be repeated."""
    stored = {name: saved["args"][name] for name in names if name in saved["args"]}
    return argparse.Namespace(**{**vars(args), **stored})
