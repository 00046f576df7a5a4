"""What the processor gives to a run: threads that fit, and memory that is kept instead of fetched anew every step."""

import ctypes
import os
import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory(device="cpu"):
    """Return the bytes held at most so far: by torch's allocator on CUDA, else by the process; 0 if unknown."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with the parent's
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def usable_cores():
    """Return how many cores this process may keep busy: those it is bound to, within its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or no quota: "max"
        pass
    return cores


def fit_threads():
    """Give torch this process's share of the usable cores, at most what it would take; OMP_NUM_THREADS decides.

    But under torchrun, which sets it to 1 where it is not set, a 1 counts as not set.
    """
    share = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(share, torch.get_num_threads()))
    elif "TORCHELASTIC_RUN_ID" in os.environ and os.environ["OMP_NUM_THREADS"] == "1":
        torch.set_num_threads(share)


def keep_freed_memory():
    """Make glibc keep freed memory for the next step: the gradients of a step fill hundreds of fresh megabytes.

    A page that the system hands out anew costs more than what is then computed in it. Elsewhere than on Linux with
    glibc this does nothing.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):  # another C library
            return
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 * 2**20)
