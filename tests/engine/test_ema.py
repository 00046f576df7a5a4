"""The moving average of the weights: by hand, swapped in and out, off at 0, and in the files of a run.

It changes no model: it begins as the weights, trains nothing, and leaves alone what the training does.
"""

import pytest
import torch
from torch import nn

from engine.ema import ExponentialMovingAverage
from tests.helpers.script_runs import RUN, checkpoint, data, difference, flags_of, outcome, script  # noqa: F401


def model_of(*values):
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(values[0])
        model.bias.fill_(values[1])
    return model


def test_by_hand():
    """Decays min(d, (1 + t) / (10 + t)): 2/11 and 3/12 after two steps, then d itself."""
    model = model_of(1.0, 0.0)
    ema = ExponentialMovingAverage(model, 0.25)
    expected = 1.0
    for step, (weight, decay) in enumerate([(2.0, 2 / 11), (4.0, 0.25), (8.0, 0.25), (0.0, 0.25)], start=1):
        with torch.no_grad():
            model.weight.fill_(weight)
        ema.update(step)
        expected = decay * expected + (1 - decay) * weight
        assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.average["bias"].item() == 0


def test_swapping_twice_restores_every_bit_in_the_same_tensors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    ema = ExponentialMovingAverage(model, 0.9)
    nn.init.normal_(model[0].weight)
    ema.update(1)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = {name: tensor.clone() for name, tensor in ema.average.items()}
    places = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(RuntimeError), ema.applied():
        assert difference(average, {name: p.detach() for name, p in model.named_parameters()}) is None
        raise RuntimeError("scoring failed")
    assert difference(weights, {name: p.detach() for name, p in model.named_parameters()}) is None
    assert difference(average, ema.average) is None and places == [p.data_ptr() for p in model.parameters()]


def test_frozen_parameters_have_no_average():
    model = model_of(1.0, 2.0)
    model.bias.requires_grad_(False)
    ema = ExponentialMovingAverage(model, 0.5)
    assert list(ema.average) == ["weight"]
    ema.load({"weight": torch.tensor([[5.0]]), "bias": torch.tensor([9.0])})
    with ema.applied():
        assert (model.weight.item(), model.bias.item()) == (5, 2)


def test_a_run_scores_and_keeps_the_average(script, data, tmp_path):  # noqa: F811
    ends = {}
    for name, flags in {"warm": [], "without": [], "zero": ["--ema", "0"], "with": ["--ema", "0.9"]}.items():
        (tmp_path / name).mkdir()
        code, said = script.run(tmp_path / name, *flags_of(data, "--epochs", "2", *flags))
        assert code == 0, said
        ends[name] = outcome(tmp_path / name)
    assert difference(ends["without"], ends["zero"]) is None
    # Training goes the same way; what is scored and kept is another model.
    plain, averaged = ends["without"]["last.pt"], ends["with"]["last.pt"]
    assert difference(plain["model"], averaged["model"]) is None and plain["training"]["ema"] is None
    best = checkpoint(tmp_path / "with" / RUN / "best.pt")["model"]
    assert not torch.equal(best["sentiment_head.1.weight"], plain["model"]["sentiment_head.1.weight"])
    if averaged["training"]["stale"] == 0:  # the last scoring was the best
        assert all(torch.equal(best[name], tensor) for name, tensor in averaged["training"]["ema"].items())
