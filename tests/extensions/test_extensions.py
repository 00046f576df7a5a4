"""The plain members of the seams, each against torch or by hand, and the table of contents against the files."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import extensions
from extensions import GRADIENTS, TASK_LOSSES
from extensions.forward import ForwardPass

FOLDER = Path(extensions.__file__).parent


def tables():
    """Return {name: dict} of the seams."""
    return {name: value for name, value in vars(extensions).items() if isinstance(value, dict) and name.isupper()}


def test_table_of_contents_names_every_file_and_every_member():
    tree = ast.parse((FOLDER / "__init__.py").read_text(encoding="utf-8"))
    imported = {node.module: {alias.name for alias in node.names} for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module.startswith("extensions.")}
    assert sorted(imported) == sorted(f"extensions.{path.stem}" for path in FOLDER.glob("*.py") if path.stem[0] != "_")
    listed = [member for members in tables().values() for member in members.values()]
    assert {member.__name__ for member in listed} == {name for names in imported.values() for name in names}
    assert all(member.__doc__ for member in listed)
    assert all(re.search(rf"^    {name}\b", extensions.__doc__, re.M) for name in tables())


def test_from_spec_binds_the_options():
    def technique(model, lr, weight_decay=0.01, rank=8, scale=1.0, fast=False, layers="all"):
        return rank, scale, fast, layers

    def plain(model):
        return "plain"

    table = {"technique": technique, "plain": plain}
    assert extensions.from_spec("technique", table)(None, 0.1) == (8, 1.0, False, "all")
    bound = extensions.from_spec("technique:rank=4,scale=1e-2,fast=true,layers=last-4", table)
    assert bound(None, 0.1) == (4, 0.01, True, "last-4")
    assert extensions.from_spec("plain", table)(None) == "plain"
    for wrong, answer in (("lora", "technique, plain"), ("technique:size=4", r"rank \(default 8\), scale"),
                          ("technique:rank", "rank"), ("technique:weight_decay=1", "rank"),
                          ("technique:rank=abc", "rank"), ("technique:rank=true", "rank"),
                          ("technique:layers=4", "layers"),
                          ("plain:rank=4", "no options"), ("", "technique, plain")):
        with pytest.raises(ValueError, match=answer):
            extensions.from_spec(wrong, table)


class Answer:
    """A model whose logits are given."""

    def __init__(self, *logits):
        self.answer = torch.tensor(logits, requires_grad=True)

    def encode(self, task, batch):
        return []

    def score(self, task, encodings):
        return self.answer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_regression_and_binary_losses(dtype):
    labels = torch.tensor([1.0, 0.0, 1.0], dtype=dtype)
    model = Answer(0.5, -2.0, 3.0)
    logits = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    p = 1 / (1 + torch.exp(-logits))
    by_hand = {
        "bce": -(labels * torch.log(p) + (1 - labels) * torch.log(1 - p)).mean(),
        "mse": ((logits - labels) ** 2).mean()}
    for name, expected in by_hand.items():
        loss = TASK_LOSSES[name](ForwardPass(model, "sst", {"labels": labels}))
        assert loss.dtype == torch.float32 and loss.shape == ()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), name
        loss.backward()
    assert model.answer.grad.dtype == torch.float32


def test_cross_entropy():
    rows = [[1.0, 2.0, 0.0], [0.0, -1.0, 4.0]]
    loss = TASK_LOSSES["ce"](ForwardPass(Answer(*rows), "sst", {"labels": torch.tensor([1, 0])}))
    logits = torch.tensor(rows)
    by_hand = (torch.logsumexp(logits, 1) - logits[[0, 1], [1, 0]]).mean()
    assert loss.item() == pytest.approx(by_hand.item())


@pytest.mark.parametrize("name, labels", [("ce", [1, 0]), ("bce", [1, 0]), ("mse", [2.5, 0.0])])
def test_losses_are_computed_in_fp32(name, labels):
    model = Answer(*([[1.0, 2.0], [0.3, 0.1]] if name == "ce" else [1.0, 0.3]))
    half = SimpleNamespace(encode=model.encode, score=lambda *args: model.score(*args).bfloat16())
    assert TASK_LOSSES[name](ForwardPass(half, "sst", {"labels": torch.tensor(labels)})).dtype == torch.float32


def test_gradient_sum_is_the_gradient_of_the_sum():
    w, v = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    losses = {"a": (w ** 2).sum(), "b": v * w[0], "c": 5 * v}
    gradient = GRADIENTS["sum"]()
    gradient.backward(losses, [w, v])
    gradient.combine([w, v])
    assert w.grad.tolist() == [2 * 1.0 + 3.0, 2 * 2.0] and v.grad.item() == 1.0 + 5.0
    w.grad = None
    gradient.backward({"a": F.mse_loss(w, torch.zeros(2))}, [w])
    assert w.grad.tolist() == [1.0, 2.0]
