"""The contract's flags: names, meanings and defaults of both scripts, typed by hand from the contract."""
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Both scripts; classifier.py keeps the course's defaults, multitask_classifier.py gets them from @recipes/course.args.
FLAGS = {"seed": 11711, "epochs": 10, "option": "pretrain", "use_gpu": False, "batch_size": 8,
         "hidden_dropout_prob": 0.3}
COMMAND = "--seed 3 --epochs 2 --option finetune --use_gpu --batch_size 4 --hidden_dropout_prob 0.1 --lr 2e-5"
GIVEN = {"seed": 3, "epochs": 2, "option": "finetune", "use_gpu": True, "batch_size": 4, "hidden_dropout_prob": 0.1,
         "lr": 2e-5}
PATHS = {
    "sst_train": "data/ids-sst-train.csv", "sst_dev": "data/ids-sst-dev.csv",
    "sst_test": "data/ids-sst-test-student.csv",
    "para_train": "data/quora-train.csv", "para_dev": "data/quora-dev.csv", "para_test": "data/quora-test-student.csv",
    "sts_train": "data/sts-train.csv", "sts_dev": "data/sts-dev.csv", "sts_test": "data/sts-test-student.csv",
    "sst_dev_out": "predictions/sst-dev-output.csv", "sst_test_out": "predictions/sst-test-output.csv",
    "para_dev_out": "predictions/para-dev-output.csv", "para_test_out": "predictions/para-test-output.csv",
    "sts_dev_out": "predictions/sts-dev-output.csv", "sts_test_out": "predictions/sts-test-output.csv",
}


def arguments(monkeypatch, module, command):
    """Return get_args() of a script as started in the project's root with `command`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"{module}.py", *command.split()])
    return vars(import_module(module).get_args())


@pytest.mark.parametrize("module", ["classifier", "multitask_classifier"])
def test_flags_are_read(module, monkeypatch):
    read = arguments(monkeypatch, module, COMMAND)
    assert {name: read[name] for name in GIVEN} == GIVEN


@pytest.mark.parametrize("command, lr", [("", 1e-3), ("--option pretrain", 1e-3), ("--option finetune", 1e-5)])
def test_classifier_defaults_are_the_courses(command, lr, monkeypatch):
    read = arguments(monkeypatch, "classifier", command)
    want = {**FLAGS, "option": command.split()[-1] if command else "pretrain", "lr": lr}
    assert {name: read[name] for name in want} == want


def test_course_recipe_restores_the_courses_multitask_defaults(monkeypatch):
    read = arguments(monkeypatch, "multitask_classifier", "@recipes/course.args")
    assert {name: read[name] for name in FLAGS} == FLAGS
    assert read["lr"] == 1e-5


@pytest.mark.parametrize("option", ["pretrain", "finetune"])
def test_multitask_defaults_are_of_the_right_kind(option, monkeypatch):
    read = arguments(monkeypatch, "multitask_classifier", f"--option {option}")
    assert {name: type(read[name]) for name in FLAGS} == {name: type(value) for name, value in FLAGS.items()}
    assert type(read["lr"]) is float  # course code hands it to an optimizer as it is


def test_multitask_paths_default_to_the_contracts_files(monkeypatch):
    read = arguments(monkeypatch, "multitask_classifier", "")
    assert {name: read[name] for name in PATHS} == PATHS


@pytest.mark.parametrize("name", PATHS)
def test_multitask_path_flag(name, monkeypatch):
    assert arguments(monkeypatch, "multitask_classifier", f"--{name} elsewhere/{name}.csv")[name].endswith(
        f"elsewhere/{name}.csv")


@pytest.mark.parametrize("module", ["classifier", "multitask_classifier"])
@pytest.mark.parametrize("command", ["--option neither", "--fine-tune-mode neither"])
def test_unknown_option_is_refused(module, command, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        arguments(monkeypatch, module, command)
    assert stop.value.code == 2 and "neither" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["classifier", "multitask_classifier"])
@pytest.mark.parametrize("mode, option", [("last-linear-layer", "pretrain"), ("full-model", "finetune")])
def test_spring_2024_fine_tune_mode_is_an_alias(module, mode, option, monkeypatch):
    assert arguments(monkeypatch, module, f"--fine-tune-mode {mode}")["option"] == option
