"""The example technique of CONTRIBUTING.md is a whole one: it is put where the guide says, and trained."""

import importlib.util
import math
import re
import textwrap
from pathlib import Path

import pytest
import torch

import extensions
import multitask_classifier
from files.errors import UserError

GUIDE = Path(multitask_classifier.__file__).parent / "CONTRIBUTING.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Return the module of the guide's first block of Python, its technique among those of --loss."""
    block = re.search(r"^( *)```python\n(.*?)^ *```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[2]
    path = tmp_path / "huber.py"
    path.write_text(textwrap.dedent(block), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("huber", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(extensions.TASK_LOSSES, module.HUBER.name, module.HUBER)
    return module


def test_the_example_is_short_and_computes_its_formula(example):
    assert len(Path(example.__file__).read_text(encoding="utf-8").splitlines()) < 20

    class Pass:
        logits, labels = torch.tensor([1.0, 5.0]), torch.tensor([1.5, 2.0], dtype=torch.float64)
    # .5² / 2, and 3 · 1 - 1² / 2
    assert math.isclose(example.huber(Pass), (0.125 + 2.5) / 2) and math.isclose(example.huber(Pass, weight=2.0), 2.625)


def test_the_example_trains(example, course_folder):
    run_dir = course_folder / "run"
    args = multitask_classifier.get_args(["--tasks", "sts", "--loss", "sts=huber:delta=0.5", "--max_steps", "3",
                                          "--log_every", "1", "--run_dir", str(run_dir)])
    multitask_classifier.train_multitask(args)
    assert (run_dir / "best.pt").exists()
    losses = re.findall(r'"sts": ([\d.]+)', (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert losses and all(float(loss) > 0 for loss in losses)


def test_its_options_are_checked(example, capsys):
    with pytest.raises((SystemExit, UserError)) as error:
        multitask_classifier.get_args(["--tasks", "sts", "--loss", "sts=huber:delta=0"])
    assert "delta must be" in f"{error.value}{capsys.readouterr().err}"
