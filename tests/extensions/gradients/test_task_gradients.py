"""What PCGrad, GradVac and CAGrad share: which parameters, parts of a step, precision, several processes.

`python -m tests.extensions.gradients.test_task_gradients FOLDER RANK` is one of two processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from extensions.gradients.cagrad import CAGrad
from extensions.gradients.gradient_sum import GradientSum
from extensions.gradients.gradvac import GradVac
from extensions.gradients.pcgrad import PCGrad
from tests.extensions.gradients.test_gradients import CONFLICT, TASKS, combine, combined

KINDS = (PCGrad, GradVac, CAGrad)


class Model(torch.nn.Module):
    """A shared layer, a layer of two of the three tasks, a head each, and a parameter that nobody uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.pairs = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(6, 1) for task in TASKS[:3]})
        self.idle = torch.nn.Parameter(torch.ones(2))
        generator = torch.Generator().manual_seed(1)
        self.data = {task: (torch.randn(6, 6, generator=generator), 3 * torch.randn(6, 1, generator=generator))
                     for task in TASKS[:3]}

    def losses(self, rows=slice(None), tasks=TASKS[:3]):
        """Return {task: loss of the rows, times their share of all}."""
        losses = {}
        for task in tasks:
            x, y = (values[rows] for values in self.data[task])
            h = torch.tanh(self.shared(x))
            h = h if task == "sst" else torch.tanh(self.pairs(h))
            losses[task] = (self.heads[task](h).float() - y).square().mean() * len(x) / 6
        return losses

    def gradients(self, technique, *parts, tasks=TASKS[:3]):
        """Return {name: gradient or None} that the technique writes."""
        params = list(self.parameters())
        self.zero_grad()
        for rows in parts:
            technique.backward(self.losses(rows, tasks), params)
        combine(technique, params)
        return {name: None if p.grad is None else p.grad.clone() for name, p in self.named_parameters()}


def close(one, other, tolerance=1e-5):
    return all(one[name] is other[name] is None or torch.allclose(one[name], other[name], tolerance, tolerance)
               for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_only_shared_parameters_are_combined(kind):
    """Every other gets the plain gradient; two parts are the whole; one task is the plain gradient; None stays None."""
    model, technique = Model(), kind()
    model.data["para"] = (model.data["sst"][0], -model.data["sst"][1])
    plain = model.gradients(GradientSum(), slice(None))
    torch.manual_seed(2)
    found = model.gradients(technique, slice(None))
    assert all(cosine.ndim == 0 and -1 <= cosine <= 1 for cosine in technique.cosines.values())
    assert list(technique.cosines) == [("sst", "para"), ("sst", "sts"), ("para", "sts")]
    assert found["idle"] is None
    for name, gradient in found.items():
        if name.startswith(("heads", "idle")):
            assert gradient is plain[name] is None or gradient.equal(plain[name]), name
        else:
            assert not torch.allclose(gradient, plain[name]), name
    torch.manual_seed(2)
    assert close(model.gradients(kind(), slice(0, 4), slice(4, 6)), found)
    one = model.gradients(technique, slice(0, 4), slice(4, 6), tasks=["para"])
    assert close(one, model.gradients(GradientSum(), slice(None), tasks=["para"])) and technique.cosines == {}
    assert technique.gradients == {}  # nothing is left for the next step

    # The whole from the tasks' own gradients, a layer of two tasks being 0 for the third.
    own = [model.gradients(GradientSum(), slice(None), tasks=[task]) for task in TASKS[:3]]
    names = [name for name in found if name.startswith(("shared", "pairs"))]
    G = torch.stack([torch.cat([torch.zeros_like(found[name]).flatten() if g[name] is None else g[name].flatten()
                                for name in names]) for g in own])
    torch.manual_seed(2)
    assert torch.allclose(combined(kind(), G, dtype=torch.float32),
                          torch.cat([found[name].flatten() for name in names]), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_and_a_loss_that_falls(kind):
    model, technique = Model(), kind()
    optimizer, totals = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses()
        optimizer.zero_grad()
        technique.backward(losses, list(model.parameters()))
        combine(technique, list(model.parameters()))
        optimizer.step()
        totals.append(sum(losses.values()).item())
    assert totals[-1] < 0.8 * totals[0] and all(p.dtype == torch.float32 for p in model.parameters())


def work(folder, rank):
    """Compute the even or odd rows, as one of two processes; write every technique's gradients into `folder`."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, found = Model(), {}
    torch.manual_seed(rank)  # the processes of a run have different dropout masks
    for kind in KINDS:
        technique = kind()
        for tasks in (TASKS[:2], TASKS[:3]):
            gradients = model.gradients(technique, slice(rank, 3, 2), slice(3 + rank, 6, 2), tasks=tasks)
            found[f"{kind.__name__} {len(tasks)}"] = gradients, dict(technique.cosines), technique.state_dict()
    found["orders"] = [combined(PCGrad(), CONFLICT / 2).tolist() for _ in range(20)]
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs Gloo")
def test_two_processes_do_what_one_does(tmp_path):
    """The orders that PCGrad and GradVac draw are the same in both processes, though their seeds differ."""
    root = Path(__file__).parents[3]
    module = "tests.extensions.gradients.test_task_gradients"
    workers = [subprocess.Popen([sys.executable, "-m", module, str(tmp_path), str(rank)], cwd=root,
                                env={**os.environ, "OMP_NUM_THREADS": "1"}) for rank in (0, 1)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["orders"] == second["orders"] and len(set(map(tuple, first["orders"]))) > 4
    for kind in KINDS:
        for tasks in (TASKS[:2], TASKS[:3]):
            key = f"{kind.__name__} {len(tasks)}"
            assert close(first[key][0], second[key][0], 0) and first[key][1:] == second[key][1:], key
            if kind is CAGrad or len(tasks) == 2:
                technique = kind()
                one = Model().gradients(technique, slice(None), tasks=tasks)
                assert close(first[key][0], one, 1e-3 if kind is CAGrad else 1e-5), key
                for pair, cosine in technique.cosines.items():
                    assert cosine.item() == pytest.approx(first[key][1][pair].item(), abs=1e-5)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
