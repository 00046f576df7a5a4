"""Seeds, devices, attention masks, and the names of files/ that the course's utils.py has.

The course's files say `from utils import *` and live on what that brings along (`os`, `torch`, `nn`, `Optional`,
`Union`), so this module has no `__all__`.
"""

import os  # noqa: F401
import random
import sys
from itertools import chain
from typing import Optional, Union  # noqa: F401

import numpy as np
import torch
from torch import nn

from files.downloads import cached_path, get_from_cache, url_to_filename  # noqa: F401
from files.errors import UserError
from files.http import hf_bucket_url, http_get, is_remote_url  # noqa: F401
from files.pretrained import CONFIG_NAME, WEIGHTS_NAME  # noqa: F401


def seed_everything(seed=11711):
    """Seed Python, NumPy and PyTorch on all devices, and make cuDNN choose deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def get_device(use_gpu: bool) -> torch.device:
    """Return CUDA, else Apple's MPS, with `use_gpu` (UserError without either); else the CPU, and name a GPU unused.

    On CUDA torch no longer chooses cuDNN's attention: that plans anew for every shape of a batch, for longer than the
    batch takes, and has no gradient of a learned bias.
    """
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if use_gpu and gpu is None:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UserError(
            f"--use_gpu: torch {torch.__version__} ({build}) sees no GPU here. Leave --use_gpu out to run on the CPU, "
            "or install the GPU's driver and the PyTorch build that goes with it (pytorch.org/get-started)."
        )
    if gpu and not use_gpu:
        name = torch.cuda.get_device_name() if gpu == "cuda" else "Apple MPS"
        print(f"hint: running on the CPU; --use_gpu would use the {name} here", file=sys.stderr)
    if use_gpu and gpu == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(gpu if use_gpu else "cpu")


def get_extended_attention_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a 1 / 0 mask (B, T) or (B, T, T) into what is added to the scores: 0 / -10000, (B, 1, 1, T) or (B, 1, T, T).

    Raises ValueError for any other number of dimensions.
    """
    if mask.dim() not in (2, 3):
        raise ValueError(f"attention mask of shape {tuple(mask.shape)}: expected (B, T) or (B, T, T)")
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None, :, :]
    return (1.0 - mask.to(dtype)) * -10000.0


def get_parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the module's first floating-point parameter or buffer (PyTorch's default without one)."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())
