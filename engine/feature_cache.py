"""Features of a frozen encoder: computed once for all epochs, and kept on the disk for the next run.

It serves the wish behind a cache of keys and values in an encoder: not to compute again what cannot have changed. Only
where no parameter below the heads is trained (--option pretrain without --adapt) is a text's encoding such a thing.

A file of the cache is named by a digest of all that its features depend on: the encoder's weights, settings, classes
and their source, the pooling, the rows' tokens, precision, device and torch's version. What is in a file counts only if
its own digest and shape are right. MINBERT_FEATURE_CACHE=0 turns the cache off.

Legend of the shape comments:  N rows · B batch · C hidden size
"""

import contextlib
import hashlib
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset

from engine import distributed
from engine.batching import bucket_loader, scoring_size
from engine.losses import read_texts
from engine.step import to_device
from engine.token_cache import save_cached, token_digest
from extensions.encoder import is_frozen, takes_task
from files.downloads import default_cache_dir

# Fewer tokens are encoded sooner than the weights are read; the folder keeps so many bytes, the last used.
FEATURE_CACHE_TOKENS, FEATURE_CACHE_BYTES, FEATURE_CACHE_FORMAT = 10_000, 5 * 10**9, 1
# What of a module's attributes says nothing of what it computes in evaluation; p is dropout's.
IRRELEVANT = {"training", "p", "name_or_path"}


def are_fixed(model, losses=None, penalties=()):
    """Tell whether a model's features stay as they are, and suffice for losses {task: specs} and penalties (specs).

    Nothing below the heads is trained, and the frozen encoder runs without dropout. Some losses and penalties read a
    batch's tokens, or disturb their embeddings: `reads_texts` of their records says so. Pairs are read in one order.
    """
    return (model.config.option == "pretrain" and model.pair_order == "given"
            and not read_texts(losses or {}, penalties or ())
            and all(is_frozen(part) for part in (model.bert, *model.pooling.values())))


def features_of(batch):
    """Return the features in a batch as a model's `encode` has them: [(B, C)], or u and v, (B, C) each."""
    features = batch["features"]
    return [features] if features.ndim == 2 else list(features.unbind(1))


class FrozenFeatures(Dataset):
    """The rows of a data set with their features under a frozen encoder, computed without dropout or read from a file.

    Pairs are encoded as the model does for `task`. `collect` is evaluation's: it runs a function over a loader.
    `from_cache` tells where the features came from.
    """

    def __init__(self, dataset, model, device, task, collect):
        self.dataset = dataset
        encoding = model.pair_encoding.get(task, "cross")
        path = cache_path(dataset, model, device, task, encoding)
        widths = (2,) if encoding != "cross" else ()  # two encodings a row
        shape = (len(dataset), *widths, model.bert.config.hidden_size)
        found = load_features(path, shape) if path else None
        # What one process lacks all compute: each has its share of the batches.
        self.from_cache = all(distributed.gather(found is not None))
        if self.from_cache:
            self.features = torch.from_numpy(found)
            return
        on_gpu = torch.device(device).type != "cpu"
        loader = bucket_loader(dataset, *scoring_size(on_gpu), pair_encoding="bi" if encoding == "bi" else "cross",
                               pin_memory=on_gpu)

        def encode(batch):
            encodings = model.encode(task, to_device(batch, device))
            return encodings[0] if len(encodings) == 1 else torch.stack(list(encodings), dim=1)

        features, *_ = collect(loader, model, encode)
        order = torch.tensor([index for indices in loader.batch_sampler for index in indices])
        self.features = features[order.argsort()]  # (N, C) or (N, 2, C), in the rows' order
        if path and distributed.is_main():
            save_features(path, self.features.numpy())

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return index

    def lengths(self):
        """Return 1 for each row: a feature vector has no padding."""
        return [1] * len(self)

    def collate_fn(self, indices):
        """Return {'features': (B, C) or (B, 2, C), 'sent_ids'}, of labelled rows 'labels' (B,), and texts' 'sents'."""
        rows = [self.dataset[i] for i in indices]
        batch = {"features": self.features[indices], "sent_ids": [row[-1] for row in rows]}
        labels = self.dataset.labels(rows)
        if labels is not None:
            batch["labels"] = labels
        return {**batch, "sents": [row[0] for row in rows]} if self.dataset.texts == 1 else batch


def frozen_loaders(loaders, model, device, collect):
    """Return {task: loader} of the features that a frozen encoder has of what these loaders read."""
    return {task: frozen_loader(loader, model, device, task, collect) for task, loader in loaders.items()}


def frozen_loader(loader, model, device, task, collect):
    """Return the loader of a data set's features in place of that of its tokens, of as many rows a batch."""
    sampler = loader.batch_sampler
    features = FrozenFeatures(loader.dataset, model, device, task, collect)
    cap = max(sampler.max_tokens, sampler.batch_size)  # features are no tokens
    return bucket_loader(features, sampler.batch_size, cap, sampler.shuffle, sampler.seed, pin_memory=loader.pin_memory)


def cache_path(dataset, model, device, task, encoding):
    """Return the cache's file for these features: its name tells apart all that they depend on; None without cache."""
    if os.environ.get("MINBERT_FEATURE_CACHE") == "0" or dataset.lengths().sum() < FEATURE_CACHE_TOKENS:
        return None
    device = torch.device(device)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
    by_task = task if takes_task(model.bert) else None
    settings = [FEATURE_CACHE_FORMAT, torch.__version__, device.type, str(dtype), encoding, by_task]
    sequences = dataset.sequences("bi" if encoding == "bi" else "cross")
    tokens = [token_digest(*(part for part in sequences[suffix] if part is not None)) for suffix in sorted(sequences)]
    pooler = digest_of(model.pooling[task]) if task in model.pooling else None
    key = [settings, tokens, digest_of(model.bert), pooler]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return default_cache_dir() / "features" / f"{name}.safetensors"


def digest_of(module):
    """Return the SHA-256 of all that decides what a module computes in evaluation.

    That is the classes and plain attributes of its parts, every parameter and buffer, and this project's source.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        plain = {key: value if type(value) in (bool, int, float, str) else getattr(value, "__qualname__", repr(value))
                 for key, value in vars(part).items() if type(value) in (bool, int, float, str) or callable(value)}
        kinds = [kind for kind in type(part).__mro__ if not kind.__module__.startswith(("torch", "builtins"))]
        settings = {key: value for key, value in plain.items() if key not in IRRELEVANT}
        digest.update(json.dumps([name, type(part).__name__, [kind.__qualname__ for kind in kinds], settings],
                                 sort_keys=True).encode())
    digest.update(source_digest())
    for tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in sorted(tensors(remove_duplicate=False), key=lambda found: found[0]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def source_digest():
    """Return the SHA-256 of the model files, engine/ and extensions/, any of which may decide what is computed."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for source in sorted([*root.glob("*.py"), *root.glob("engine/*.py"), *root.glob("extensions/**/*.py")]):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.digest()


def load_features(path, shape):
    """Return the features in a file of the cache; None if there is none, or, with a note, one that is not right."""
    if not os.path.lexists(path):
        return None
    try:
        with safe_open(path, "numpy") as file:
            part = file.get_slice("features")
            if (tuple(part.get_shape()), part.get_dtype()) == (shape, "F32"):
                features, metadata = file.get_tensor("features"), file.metadata()
                if metadata == {"key": path.stem, "sha256": token_digest(features)} and np.isfinite(features).all():
                    with contextlib.suppress(OSError):  # a folder that may only be read serves as well
                        os.utime(path)
                    return features
    except (OSError, ValueError, SafetensorError):
        pass
    print(f"note: {path} is damaged or not what its name says: the features are computed anew")
    return None


def save_features(path, features):
    """Write finite features to the cache; a warning where that cannot be."""
    if np.isfinite(features).all():
        save_cached("features", path, FEATURE_CACHE_BYTES, features=np.ascontiguousarray(features))
