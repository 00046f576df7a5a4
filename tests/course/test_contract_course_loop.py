"""The course's own code runs: its namespaces through train and test, its editions' names, its checkpoints."""
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import classifier
import evaluation
import multitask_classifier
from bert import BertModel
from tests.helpers.fixtures_tiny import course_rows

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_KEYS = "model optim args model_config system_rng numpy_rng torch_rng"
SENTIMENT, PARAPHRASE, SIMILARITY = (
    "id \t Predicted_Sentiment \n", "id \t Predicted_Is_Paraphrase \n", "id \t Predicted_Similiary \n")
OUT_FILES = {
    "sst_dev_out": ("ids-sst-dev.csv", SENTIMENT, r"[0-4]"),
    "sst_test_out": ("ids-sst-test-student.csv", SENTIMENT, r"[0-4]"),
    "para_dev_out": ("quora-dev.csv", PARAPHRASE, r"[01]\.0"),
    "para_test_out": ("quora-test-student.csv", PARAPHRASE, r"[01]\.0"),
    "sts_dev_out": ("sts-dev.csv", SIMILARITY, r"-?\d+\.\d+(e-?\d+)?"),
    "sts_test_out": ("sts-test-student.csv", SIMILARITY, r"-?\d+\.\d+(e-?\d+)?"),
}


def classifier_args(option="pretrain", name="sst", **changes):
    """Return what the course's classifier.py hands to its train and test; there is no seed among it."""
    course = {
        "filepath": f"{name}-classifier.pt", "lr": 1e-3, "use_gpu": False, "epochs": 1, "batch_size": 4,
        "hidden_dropout_prob": 0.3, "train": f"data/ids-{name}-train.csv", "dev": f"data/ids-{name}-dev.csv",
        "test": f"data/ids-{name}-test-student.csv", "option": option,
        "dev_out": f"predictions/{option}-{name}-dev-out.csv", "test_out": f"predictions/{option}-{name}-test-out.csv"}
    return SimpleNamespace(**{key: value for key, value in {**course, **changes}.items() if value is not None})


def multitask_args(option="finetune", **changes):
    """Return what the course's multitask_classifier.py parses, and `filepath`."""
    files = {"sst": "data/ids-sst-{}.csv", "para": "data/quora-{}.csv", "sts": "data/sts-{}.csv"}
    course = {"seed": 11711, "epochs": 1, "option": option, "use_gpu": False, "batch_size": 4,
              "hidden_dropout_prob": 0.3, "lr": 1e-3, "filepath": f"{option}-1-0.001-multitask.pt"}
    for task, path in files.items():
        for split, name in (("train", "train"), ("dev", "dev"), ("test", "test-student")):
            course[f"{task}_{split}"] = path.format(name)
        for split in ("dev", "test"):
            course[f"{task}_{split}_out"] = f"predictions/{task}-{split}-output.csv"
    return SimpleNamespace(**{key: value for key, value in {**course, **changes}.items() if value is not None})


def assert_predictions(path, name, header, value):
    """Assert the bytes of a prediction file for the tiny course file `name`: header, every id in order, values."""
    lines = Path(path).read_bytes().decode("ascii").splitlines(keepends=True)
    assert lines[0] == header
    ids = [row[0] for row in course_rows(name, 8)]
    assert len(lines) == 1 + len(ids)
    for line, sent_id in zip(lines[1:], ids, strict=True):
        assert re.fullmatch(rf"{sent_id} , {value} \n", line), line


def assert_plain(value):
    """Assert that a checkpoint's value is made of dicts, lists, tensors and scalars."""
    if isinstance(value, dict):
        assert all(isinstance(key, (str, int)) for key in value)
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            assert_plain(item)
    else:
        assert value is None or type(value) in (bool, int, float, str, torch.Tensor), type(value)


def load_checked(filepath):
    """Return a checkpoint, loaded as tensors and plain values only, after checking its keys and values."""
    saved = torch.load(filepath, weights_only=True)
    assert sorted(saved) == sorted(CHECKPOINT_KEYS.split())
    assert all(isinstance(value, (dict, list, torch.Tensor)) for value in saved.values())
    assert type(saved["args"]) is dict and type(saved["model_config"]) is dict
    assert_plain(saved)
    return saved


def encoder_moved(saved, tiny_bert):
    """Tell whether a checkpoint's encoder differs from the pretrained weights."""
    pretrained = BertModel.from_pretrained(str(tiny_bert)).state_dict()
    return any(not saved["model"][f"bert.{name}"].equal(tensor) for name, tensor in pretrained.items())


@pytest.mark.parametrize("option", ["pretrain", "finetune"])
@pytest.mark.parametrize("name, classes", [("sst", 5), ("cfimdb", 2)])
def test_classifier_trains_and_tests_on_the_courses_namespace(option, name, classes, course_folder, tiny_bert):
    args = classifier_args(option, name)
    classifier.train(args)
    classifier.test(args)

    saved = load_checked(args.filepath)
    model = classifier.BertSentimentClassifier(saved["model_config"])
    model.load_state_dict(saved["model"])
    assert model(torch.tensor([[101, 500, 102]]), torch.ones(1, 3)).shape == (1, classes)
    assert encoder_moved(saved, tiny_bert) == (option == "finetune")
    for split, source in (("dev", "dev"), ("test", "test-student")):
        assert_predictions(f"predictions/{option}-{name}-{split}-out.csv", f"ids-{name}-{source}.csv", SENTIMENT,
                           f"[0-{classes - 1}]")


@pytest.mark.parametrize("option", ["pretrain", "finetune"])
def test_multitask_trains_and_tests_on_the_courses_namespace(option, course_folder, tiny_bert):
    args = multitask_args(option)
    multitask_classifier.train_multitask(args)
    multitask_classifier.test_multitask(args)

    saved = load_checked(args.filepath)
    model = multitask_classifier.MultitaskBERT(saved["model_config"])
    model.load_state_dict(saved["model"])
    assert encoder_moved(saved, tiny_bert) == (option == "finetune")
    written = {out: Path(getattr(args, out)).read_bytes() for out in OUT_FILES}
    for out, expected in OUT_FILES.items():
        assert_predictions(getattr(args, out), *expected)

    # The 2023 edition's names write the same files, into a folder that is not there yet.
    again = multitask_args(option, **{out: f"again/deeper/{out}.csv" for out in OUT_FILES})
    multitask_classifier.test_model(again)
    assert {out: Path(getattr(again, out)).read_bytes() for out in OUT_FILES} == written
    direct = multitask_args(option, **{out: f"direct/{out}.csv" for out in OUT_FILES})
    evaluation.test_model_multitask(direct, model, torch.device("cpu"))
    for out, expected in OUT_FILES.items():
        assert_predictions(getattr(direct, out), *expected)


@pytest.mark.parametrize("mode, moved", [("last-linear-layer", False), ("full-model", True)])
def test_spring_2024_namespace(mode, moved, course_folder, tiny_bert):
    args = classifier_args(option=None, fine_tune_mode=mode)
    classifier.train(args)
    assert encoder_moved(load_checked(args.filepath), tiny_bert) == moved


@pytest.mark.parametrize("flags, prefix", [
    ("--option pretrain", "pretrain"), ("--option finetune", "finetune"),
    ("--fine-tune-mode last-linear-layer", "last-linear-layer"), ("--fine-tune-mode full-model", "full-model"),
])
def test_classifier_script_names_its_files_by_the_flag(flags, prefix, course_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["classifier.py", "--epochs", "1", *flags.split()])
    runpy.run_path(str(ROOT / "classifier.py"), run_name="__main__")
    for name, classes in (("sst", 5), ("cfimdb", 2)):
        for split, source in (("dev", "dev"), ("test", "test-student")):
            assert_predictions(f"predictions/{prefix}-{name}-{split}-out.csv", f"ids-{name}-{source}.csv", SENTIMENT,
                               f"[0-{classes - 1}]")
    assert len(list(Path("predictions").glob("*.csv"))) == 4


def test_multitask_script_writes_the_six_files(course_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["multitask_classifier.py", f"@{ROOT / 'recipes' / 'course.args'}",
                                      "--epochs", "1"])
    runpy.run_path(str(ROOT / "multitask_classifier.py"), run_name="__main__")
    for out, expected in OUT_FILES.items():
        assert_predictions(f"predictions/{out.replace('_out', '').replace('_', '-')}-output.csv", *expected)
