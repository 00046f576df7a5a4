"""The multitask recipe takes the same steps as one written with transformers: benchmarks/parity.py, a few of them."""

from pathlib import Path

from benchmarks.parity import compare

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


def test_the_losses_are_those_of_transformers():
    """Short texts, so that pairs are cut; every way of pooling; large steps, so that the optimizer tells."""
    losses = compare(SAMPLE, 9, "--batch_size", "8", "--max_length", "16", "--lr", "3e-4", "--weight_decay", "1",
                     "--pooling", "sst=pooler", "para=cls", "sts=mean")
    assert {task for task, _, _ in losses} == {"sst", "para", "sts"} and len(losses) == 9
    assert max(abs(ours - theirs) for _, ours, theirs in losses) < 1e-5, losses
