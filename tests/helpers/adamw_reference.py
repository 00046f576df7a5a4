"""AdamW in float64 NumPy, one number after the other: the oracle of optimizer.py, independent of torch.optim.

`python -m tests.adamw_reference`, run in the project's root, writes optimizer_test.npy and prints the expected
values that optimizer_test.py holds.
"""

import numpy as np
import torch

from optimizer_test import REFERENCE, SMALL_GRADIENTS, SMALL_SETTINGS, SMALL_START, SMALL_STEPS


def adamw(p, gradient, steps, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, correct_bias=True):
    """Return p (any shape) after `steps` steps of AdamW; gradient(p, t) is called with t = 0, 1, ..."""
    p = np.array(p, dtype=np.float64)
    exp_avg, exp_avg_sq = np.zeros_like(p), np.zeros_like(p)
    for t in range(steps):
        g = np.asarray(gradient(p, t), dtype=np.float64)
        for i in np.ndindex(p.shape):
            exp_avg[i] = betas[0] * exp_avg[i] + (1 - betas[0]) * g[i]
            exp_avg_sq[i] = betas[1] * exp_avg_sq[i] + (1 - betas[1]) * g[i] ** 2
            alpha = lr
            if correct_bias:
                alpha = lr * np.sqrt(1 - betas[1] ** (t + 1)) / (1 - betas[0] ** (t + 1))
            p[i] -= alpha * exp_avg[i] / (np.sqrt(exp_avg_sq[i]) + eps)
            p[i] -= lr * weight_decay * p[i]
    return p


def regression():
    """Return the weight (2, 3) of the course's experiment; its start and its inputs are float32 draws of seed 0."""
    torch.manual_seed(0)
    start = torch.nn.Linear(3, 2, bias=False).weight.detach().numpy()
    x = np.random.default_rng(0).uniform(size=(1000, 3)).astype(np.float32).astype(np.float64)
    y = np.stack([x[:, 0] + x[:, 1], -x[:, 2]], axis=1)
    return adamw(start, lambda w, t: 2 * np.outer(w @ x[t] - y[t], x[t]), 1000, lr=1e-3, weight_decay=1e-4)


def small_gradients():
    """Return the parameter (4,) of optimizer_test.py's second case."""
    gradients = np.array(SMALL_GRADIENTS, dtype=np.float32)
    return adamw(SMALL_START, lambda p, t: gradients[t % len(gradients)], SMALL_STEPS, **SMALL_SETTINGS)


if __name__ == "__main__":
    np.save(REFERENCE, regression().astype(np.float32))
    print("SMALL_EXPECTED =", [round(float(p), 7) for p in small_gradients()])
