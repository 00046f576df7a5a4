"""The plain members of the seams, each against torch or by hand, and the table of contents against the files."""

import ast
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import extensions
from extensions import ADAPT, ENCODER_FLAGS, GRADIENTS, SCHEDULES, TASK_LOSSES
from extensions.forward import ForwardPass
from extensions.listing import FLAGS, WIDTH, listing, spec_with_defaults
from extensions.specs import complete_options, from_spec, require_effect, technique_of
from extensions.technique import OneOf, Range, Technique, by_name
from tasks import TASKS

FOLDER = Path(extensions.__file__).parent
# Files of the folders that are no technique of a dict: what --dropout and --pair_* read.
OTHERS = {"architecture/dropout_sites.py", "heads/pairs.py"}
TABLES = {name: value for name, value in vars(extensions).items()
          if name.isupper() and isinstance(value, dict) and name in extensions.__all__}
NO_TECHNIQUES = ("DROPOUT_SITES", "OUTPUTS", "PAIR_FEATURES")
TECHNIQUES = [(name, key, technique) for name, table in TABLES.items() for key, technique in table.items()
              if name not in NO_TECHNIQUES]


def records_in(path):
    """Return the names of the techniques that a file declares."""
    calls = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)
             and isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "Technique"]
    return [call.value.args[0].value for call in calls]


def test_the_table_of_contents_names_every_dict_and_the_dicts_hold_every_file():
    assert all(re.search(rf"^    {name}\b", extensions.__doc__, re.M) for name in TABLES)
    found = {path.relative_to(FOLDER).as_posix(): records_in(path) for path in FOLDER.glob("*/*.py")
             if not path.name.startswith("_")}
    assert {path for path, records in found.items() if not records} == OTHERS
    declared = sorted(name for records in found.values() for name in records)
    assert declared == sorted(key for _, key, _ in TECHNIQUES)


def test_every_folder_says_its_signature_and_every_flag_can_be_listed():
    for path in FOLDER.glob("*/__init__.py"):
        assert "--" in ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert {id(table) for table, *_ in FLAGS.values()} == {
        id(table) for name, table in TABLES.items() if name not in NO_TECHNIQUES}
    assert list(ADAPT) == ["lora", "dora", "adapters", "prefix", "prompt", "ia3", "bitfit", "diff", "last-linear",
                           "freeze", "gradual-unfreezing", "mixout", "pals", "task-layers", "extra-attention",
                           "extra-layers", "layer-drop", "remove-layers"]
    assert list(ENCODER_FLAGS) == ["norm", "ffn", "attention", "positions", "adapt"]


@pytest.mark.parametrize("table, key, technique", TECHNIQUES)
def test_every_technique_says_what_it_is(table, key, technique):
    assert isinstance(technique, Technique) and technique.name == key and technique.make.__doc__ is not None
    for line in (technique.does, technique.use, technique.paper):
        assert line and "\n" not in line and len(line) < 97
    defaults, words = technique.defaults(), set(TABLES[table])
    needed = {other.partition("=")[0] for other in technique.only_with.values()}
    assert {*technique.valid, *technique.only_with, *needed} <= set(defaults)
    assert not set(technique.likely) & set(defaults)
    assert {name.partition(",")[0] for name in technique.likely.values()} <= set(defaults)
    assert not set(technique.aka) & words and all(defaults[name] in valid for name, valid in technique.valid.items())
    assert table != "TASK_LOSSES" or any(technique.fits(task) for task in TASKS.values())
    spec = spec_with_defaults(technique)  # every default can be written
    assert complete_options(spec, TABLES[table]) == defaults
    for option in (f"{name}={value}" for name, value in zip(defaults, spec.partition(":")[2].split(","), strict=False)):
        from_spec(f"{key}:{option.partition('=')[2]}", TABLES[table])


def test_no_name_elsewhere_stands_for_two_techniques():
    for table, *_ in FLAGS.values():
        names = [name for technique in table.values() for name in technique.aka]
        assert len(names) == len(set(names))


def test_what_records_and_objects_both_say_agrees():
    for technique in GRADIENTS.values():
        assert technique.per_task == technique.make.per_task
    for technique in SCHEDULES.values():
        assert technique.make({}).joint == technique.joint(**technique.defaults())


@pytest.mark.parametrize("flag", FLAGS)
def test_a_list_is_a_page_of_plain_text(flag):
    text, (table, *_) = listing(flag), FLAGS[flag]
    assert listing(f"--{flag}") == text and max(map(len, text.splitlines())) <= WIDTH
    for technique in table.values():
        assert f"\n\n{spec_with_defaults(technique)}\n    {technique.does}\n    Use: {technique.use}\n" in text
        assert f"\n    Paper: {technique.paper}\n" in text


def a_record(name, make, **more):
    return Technique(name, make, does="nothing", use="never", paper="none", **more)


def test_from_spec_binds_the_options():
    def technique(model, lr, weight_decay=0.01, rank=8, scale=1.0, fast=False, layers="all"):
        return rank, scale, fast, layers

    def plain(model):
        return "plain"

    table = by_name(a_record("technique", technique), a_record("plain", plain))
    assert from_spec("technique", table)(None, 0.1) == (8, 1.0, False, "all")
    bound = from_spec("technique:rank=4,scale=1e-2,fast=true,layers=last-4", table)
    assert bound(None, 0.1) == (4, 0.01, True, "last-4") and inspect.isfunction(bound.func)
    assert from_spec("plain", table)(None) == "plain"
    for wrong, answer in (("lora", "technique, plain"), ("technique:size=4", r"rank \(default 8\), scale"),
                          ("technique:rank", "rank"), ("technique:weight_decay=1", "did you mean --weight_decay"),
                          ("technique:rank=abc", "rank must be a whole number, not 'abc'"),
                          ("technique:rank=true", "rank"), ("technique:layers=4", "layers must be a word"),
                          ("plain:rank=4", "no options"), ("", "technique, plain")):
        with pytest.raises(ValueError, match=answer):
            from_spec(wrong, table)


def test_what_a_record_says_is_checked_without_a_model():
    def technique(model, rank=8, norm="inf", size=0):
        raise AssertionError("nothing is built")

    def whole(rank, norm, size):
        if size % rank:
            raise ValueError(f"size {size} is no multiple of rank {rank}")

    table = by_name(a_record("technique", technique, valid={"rank": Range(1, 9), "norm": OneOf(("inf", "l2"))},
                             check=whole, only_with={"size": "norm=l2"}, likely={"r": "rank"}, aka=("method",)))
    for wrong, answer in (("technique:rank=10", "rank must be from 1 to 9"),
                          ("technique:size=9", "technique:size=9: size 9 is no multiple of rank 8"),
                          ("technique:norm=l1", "norm must be one of inf, l2"), ("technique:r=1", "did you mean rank"),
                          ("method", "no 'method'; did you mean technique"), ("technqiue", "did you mean technique"),
                          ("technique:size=8", "size does nothing without norm=l2"),
                          ("a b", "'a b': no 'a b'; choose")):
        with pytest.raises(ValueError, match=answer):
            require_effect(wrong, table)
    assert technique_of("technique:anything", table).make is technique
    with pytest.raises(TypeError, match="freeze"):
        a_record("typo", technique, freeze=True)


def test_a_range_says_what_it_holds():
    for bounds, text, within, beyond in (
            (Range(1), "at least 1", 1, 0), (Range(0, 1), "from 0 to 1", 1, 1.5), (Range(above=0), "above 0", 0.1, 0),
            (Range(below=1), "at least 0 and below 1", 0, 1), (Range(above=0, most=1), "above 0 and at most 1", 1, 0)):
        assert str(bounds) == text and within in bounds and beyond not in bounds


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
