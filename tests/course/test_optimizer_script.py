"""optimizer_test.py passes here and fails for optimizers that are wrong; its references are the float64 ones."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import optimizer_test
from optimizer import AdamW
from tests.helpers.adamw_reference import regression, small_gradients


class TorchAdamW(torch.optim.AdamW):
    def __init__(self, params, correct_bias=True, eps=1e-6, weight_decay=0.0, **settings):
        super().__init__(params, eps=eps, weight_decay=weight_decay, **settings)


class SmallEps(AdamW):
    def __init__(self, params, eps=1e-6, **settings):
        super().__init__(params, eps=eps / 100, **settings)


class DecayInGradient(AdamW):
    """L2 regularisation: decay as a part of the gradient, which Adam then normalises."""

    def _update(self, params, group):
        for p in params:
            p.grad = p.grad + group["weight_decay"] * p
        super()._update(params, {**group, "weight_decay": 0.0})


class DecayFirst(AdamW):
    def _update(self, params, group):
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        super()._update(params, {**group, "weight_decay": 0.0})


def test_the_script_passes_and_its_references_are_the_float64_ones():
    done = subprocess.run([sys.executable, optimizer_test.__file__], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "passed" in done.stdout
    stored = np.load(optimizer_test.REFERENCE)
    assert stored.dtype == np.float32 and stored.shape == (2, 3)
    np.testing.assert_array_equal(stored, regression().astype(np.float32))
    np.testing.assert_allclose(optimizer_test.SMALL_EXPECTED, small_gradients(), atol=1e-7)


@pytest.mark.parametrize("wrong", [TorchAdamW, SmallEps, DecayInGradient, DecayFirst])
def test_the_second_case_catches_what_the_course_tolerance_lets_pass(wrong):
    assert "small gradients" in optimizer_test.differences(wrong)[-1]


def test_the_first_case_catches_missing_bias_correction():
    lines = optimizer_test.differences(lambda params, **settings: AdamW(params, **{**settings, "correct_bias": False}))
    assert len(lines) == 2 and "regression" in lines[0]
