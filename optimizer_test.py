"""Check optimizer.py against stored references: `python optimizer_test.py` exits 0 and says so when right.

The references come from tests/adamw_reference.py, which computes AdamW in float64 without torch.optim.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from files.errors import Parser, UserError, run_script
from optimizer import AdamW

REFERENCE = Path(__file__).resolve().parent / "optimizer_test.npy"

# The second case: gradients about as small as eps, where it matters what eps is added to, and a strong decay.
SMALL_START = [1.0, -2.0, 0.5, 3.0]
SMALL_GRADIENTS = [[1e-2, 2e-6, -1e-6, 3e-7], [-5e-3, 1e-6, 2e-6, 3e-7], [1e-2, 3e-6, -3e-6, 3e-7]]  # in turn
SMALL_STEPS = 20
SMALL_SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
SMALL_EXPECTED = [0.8650403, -1.9913422, 0.4996004, 2.9349636]


def load_reference():
    """Return the stored weight, (2, 3); raise UserError when the file is damaged or would run code."""
    try:
        reference = np.load(REFERENCE, mmap_mode="r", allow_pickle=False)  # mapped: no memory for what it claims to be
        if reference.shape != (2, 3) or reference.dtype != np.float32:
            raise ValueError(f"{reference.dtype} {reference.shape}")
    except (ValueError, EOFError) as error:
        raise UserError(f"{REFERENCE} is not the published file; git checkout optimizer_test.npy") from error
    return np.array(reference)


def fit_regression(optimizer_class):
    """Learn y = (x₀ + x₁, -x₂) for 1,000 steps, the course's experiment; return the weight, (2, 3)."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = optimizer_class(model.parameters(), lr=1e-3, weight_decay=1e-4, correct_bias=True)
    for _ in range(1000):
        x = torch.from_numpy(rng.uniform(size=3).astype(np.float32))
        y = torch.stack([x[0] + x[1], -x[2]])
        optimizer.zero_grad()
        ((y - model(x)) ** 2).sum().backward()
        optimizer.step()
    return model.weight.detach()


def follow_small_gradients(optimizer_class):
    """Take SMALL_STEPS steps along the fixed gradients; return the parameter, (4,)."""
    p = torch.nn.Parameter(torch.tensor(SMALL_START))
    optimizer = optimizer_class([p], correct_bias=True, **SMALL_SETTINGS)
    for t in range(SMALL_STEPS):
        p.grad = torch.tensor(SMALL_GRADIENTS[t % len(SMALL_GRADIENTS)])
        optimizer.step()
    return p.detach()


def differences(optimizer_class):
    """Return a line for every case in which `optimizer_class` misses the reference; none when it is right."""
    lines = []
    weight, expected = fit_regression(optimizer_class), torch.from_numpy(load_reference())
    # The course's tolerance: 1,000 steps in float32 drift that far from float64.
    if not torch.allclose(weight, expected, rtol=1e-4, atol=1e-6):
        lines.append(f"1,000 steps of regression: expected {expected.tolist()}, got {weight.tolist()}; "
                     "check the two moments, the bias correction and the update")
    p, expected = follow_small_gradients(optimizer_class), torch.tensor(SMALL_EXPECTED)
    if not torch.allclose(p, expected, rtol=1e-5, atol=1e-6):
        lines.append(f"20 steps along small gradients: expected {expected.tolist()}, got {p.tolist()}; check that eps "
                     "is added to the uncorrected sqrt(exp_avg_sq) (Kingma & Ba, end of section 2) and that decay is "
                     "p -= lr * weight_decay * p after the update, not a part of the gradient")
    return lines


def main(argv=()):
    """Print what is wrong with `optimizer.AdamW`, exit code 1, or that nothing is."""
    Parser(description=__doc__.splitlines()[0]).parse_args(argv)
    wrong = differences(AdamW)
    if wrong:
        sys.exit("optimizer test failed\n" + "\n".join(wrong))
    print("optimizer test passed: 1,000 steps of regression, 20 steps along gradients near eps")


if __name__ == "__main__":
    run_script(lambda: main(sys.argv[1:]))
