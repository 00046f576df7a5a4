"""Both scripts run with --use_gpu on a stand-in for Apple's MPS, which has no float64 and refuses it."""

from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

import classifier
import multitask_classifier
from tests.helpers.fixtures_tiny import tiny_bert_dir

MPS, CPU = torch.device("mps"), torch.device("cpu")


class StandInMPS(TorchFunctionMode):
    """Compute on the CPU what is sent to "mps" with `.to`, and refuse float64 there as MPS does.

    As none arrives, float64 could come up on the device only where another dtype turns into it: refused as well.
    """

    arrivals = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        dtypes = {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        if function is torch.Tensor.to and args[1:2] == (MPS,):
            self.arrivals += 1
            if torch.float64 in dtypes:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
            args = (args[0], CPU, *args[2:])
        result = function(*args, **kwargs)
        if dtypes - {torch.float64} and isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{function} makes float64, which MPS has not")
        return result


@pytest.fixture
def mps(monkeypatch):
    """Let this machine seem to have MPS and no CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with StandInMPS() as mode:
        yield mode


def arguments(folder, **options):
    """Return the arguments of a short run with a BERT of width 24."""
    pretrained = tiny_bert_dir(folder / "bert", hidden_size=24, num_attention_heads=2)
    return SimpleNamespace(use_gpu=True, pretrained=str(pretrained), epochs=1, batch_size=8, filepath="model.pt",
                           **options)


@pytest.mark.parametrize("pair_encoding", ["cross", "bi"])
def test_the_multitask_script_sends_no_float64(course_folder, mps, pair_encoding):
    args = arguments(course_folder, pair_encoding=pair_encoding)
    multitask_classifier.train_multitask(args)
    before = mps.arrivals
    scores = multitask_classifier.test_multitask(args)
    assert set(scores) == {"sst", "para", "sts"} and before > 50 and mps.arrivals > before


@pytest.mark.parametrize("option", ["pretrain", "finetune"])
def test_the_single_task_script_sends_no_float64(course_folder, mps, option):
    data = {split: f"data/ids-sst-{name}.csv" for split, name in (("train", "train"), ("dev", "dev"),
                                                                  ("test", "test-student"))}
    args = arguments(course_folder, option=option, **data, dev_out="dev.csv", test_out="test.csv")
    classifier.train(args)
    classifier.test(args)
    assert mps.arrivals > 50


def test_the_stand_in_is_as_strict_as_mps(mps):
    labels = torch.tensor([1.0], dtype=torch.float64)
    assert torch.ones(1).to(MPS, non_blocking=True).dtype == torch.float32
    ones = torch.ones(1)
    for forbidden in (lambda: labels.to(MPS), lambda: ones.double(), lambda: torch.mul(ones, labels),
                      lambda: ones.to(dtype=torch.float64), lambda: torch.nn.Linear(1, 1).double().to(MPS)):
        with pytest.raises(TypeError, match="float64"):
            forbidden()
    assert labels.float().to(MPS) == 1
