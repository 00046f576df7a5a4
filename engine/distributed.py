"""What several processes share: `torchrun` starts them, each computes a part of every step, process 0 alone writes.

Without torchrun there is one process, and every function here gives at once what it would give.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist


def world_size():
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """Return this process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main():
    """Tell whether this is the one process that prints and writes."""
    return rank() == 0


def restarted():
    """Tell whether torchrun started this process in place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launch():
    """Return what tells this start of torchrun from others, the same after a restart; None without torchrun."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}" if "TORCHELASTIC_RUN_ID" in os.environ else None


def start(use_gpu):
    """Join the processes that torchrun started, over NCCL with `use_gpu`, else over Gloo; silence all but process 0."""
    world, number = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
    if world > 1 and not dist.is_initialized():
        on_cuda = use_gpu and torch.cuda.is_available()
        if on_cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The launcher's store outlives a restart, and with it the addresses of dead processes: each round has names
        # of its own in it. Without the launcher's store process 0 keeps one.
        keeps = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=keeps)
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        # Process 0 may score or write for a while, with the others waiting at their next message.
        dist.init_process_group("nccl" if on_cuda else "gloo", store=store, rank=number, world_size=world,
                                timeout=timedelta(minutes=30))
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends


def stop():
    """Leave the group of processes, if there is one, and end this one: call it last.

    The processes leave together. Threads of Gloo may still be giving back tensors then, which now and then aborts an
    interpreter that is shutting down; this one does not get that far.
    """
    if world_size() > 1:
        wait()
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def add_up(tensors):
    """Replace each of `tensors` (of one dtype and device) by its sum over all processes, in one message."""
    if world_size() > 1 and tensors:
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_([tensor.detach() for tensor in tensors],
                             [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def take_from_main(tensors):
    """Give every process the values that process 0 has in `tensors`."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def gather(value):
    """Return the list of every process's `value`, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait():
    """Wait until every process is here."""
    gather(None)
