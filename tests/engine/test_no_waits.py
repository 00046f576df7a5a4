"""No technique's training step waits for the device, mixes devices, or draws random numbers on the host.

A CUDA graph can hold none of that. Torch's meta device knows shapes but no values: to read one raises an error there,
as in a capture, and so does a tensor that was left behind on the CPU.
"""

import contextlib
import io
import math
import random

import numpy as np
import pytest
import torch

from engine import fused_adamw
from engine.loop import optimizer_settings, step_settings
from engine.losses import total_loss
from engine.step import make_optimizer, make_step, part_to_device
from extensions import SCHEDULES
from extensions.heads.pairs import encode_apart, pack_pairs
from extensions.specs import build
from multitask_classifier import build_model, get_args, training_loaders
from tests.extensions.test_composition import TECHNIQUES, base  # noqa: F401 (a fixture)
from utils import get_device

META = torch.device("meta")
IDS, MASK = torch.ones(4, 6, dtype=torch.long), torch.ones(4, 6, dtype=torch.long)


def random_states():
    """Return what the generators of the host would draw next."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def fused(*lists, lr, found_inf, grad_scale=None, **options):
    """Take the place of AdamW's kernels, which the meta device lacks: all that they are given must be there."""
    tensors = [lr, found_inf, *(tensor for tensors in lists for tensor in tensors)]
    assert {tensor.device for tensor in tensors} == {META}


@pytest.fixture
def as_if_it_computed(monkeypatch):
    """Let the meta device pass for one that computes: without autocast, and with an update that does nothing."""
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": device != "meta" and enabled(device))
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(fused_adamw, "in_device_memory", lambda device: True)
    monkeypatch.setattr(fused_adamw, "fits_the_kernel", lambda p: True)
    for kernel in ("_fused_adamw_", "_fused_sgd_"):
        monkeypatch.setattr(torch, kernel, fused)


def steps_on(device, flags, times=1):
    """Take an epoch's first two steps with these flags, so many times; return (step, its last losses)."""
    with contextlib.redirect_stdout(io.StringIO()):
        args = get_args(flags)
        model = build_model(args)[0].to(device)
        schedule = build(args.schedule, SCHEDULES, training_loaders(args), args.seed, args.epochs)
        losses = {task: total_loss(args.loss[task]) for task in schedule.loaders}
        step = make_step(model.train(), losses, make_optimizer(model, **optimizer_settings(args)), device,
                         joint=schedule.joint, **step_settings(args))
    steps = schedule(0)
    for i in [0, 1] * times:
        parts = [{task: part_to_device(part, device) for task, part in steps.part(i, k, args.accumulate).items()}
                 for k in range(args.accumulate)]
        states = random_states()
        found = step(parts)
        assert all(loss.device.type == device.type for loss in found.values())
        assert random_states() == states
    return step, found


@pytest.mark.parametrize("technique", [flags for flags in TECHNIQUES if "unpadded" not in flags])
def test_every_technique(technique, base, as_if_it_computed):  # noqa: F811
    """But for unpadded attention, which counts its tokens and says that it waits."""
    step, _ = steps_on(META, [*base, "--schedule", "round-robin", *technique.split()])
    assert step.optimizer.state  # it has updated


@pytest.mark.parametrize("technique", ["--penalty smart --penalty bregman", "--penalty rdrop --penalty fgm"])
@pytest.mark.parametrize("encoding", ["cross", "bi"])
def test_penalties_of_pairs(technique, encoding, base, as_if_it_computed):  # noqa: F811
    steps_on(META, [*base, "--schedule", "round-robin", "--pair_encoding", encoding, *technique.split()])


@pytest.mark.gpu
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_on_a_gpu_every_technique_is_recorded(technique, base, capsys):  # noqa: F811
    get_device(True)
    flags = ["--schedule", "round-robin", *technique.split(), "--precision", "auto"]
    step, losses = steps_on(torch.device("cuda"), [*base, *flags], times=3)
    assert all(map(math.isfinite, losses.values())) and int(step.skipped) == 0
    assert "no CUDA graphs" not in capsys.readouterr().out
    # What the first line of a run says.
    alone = any(word in technique for word in ("--gradient", "gradual-unfreezing", "unpadded"))
    assert alone or step.recordings


def test_what_waits_is_found():
    with pytest.raises(RuntimeError, match="meta"):  # the width of its result is a value
        pack_pairs(*(tensor.to(META) for tensor in (IDS, MASK, IDS, MASK)), 12)
    with torch.no_grad(), pytest.raises(NotImplementedError, match="meta"):  # as in evaluation, where it may
        encode_apart(lambda ids, mask: ids.float(), *(tensor.to(META) for tensor in (IDS, MASK, IDS, MASK)))
