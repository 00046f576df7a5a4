"""The command line: types that check, what was said and what was not, what a resumed run remembers."""

import argparse
import json

import pytest

import multitask_classifier
from engine.arguments import completed, resolve, with_run_dir
from engine.checks import note_techniques
from engine.choices import batch_sizes
from engine.parser import ArgumentParser, number, spec_of
from extensions import PENALTIES
from files.errors import UserError
from multitask_classifier import complete, get_parser


def parsed(flags):
    """Return the arguments of a command line, without the script's own contradictions."""
    return resolve(get_parser().given(flags), complete)


def test_numbers_in_their_bounds():
    assert number(int, 1)("3") == 3 and number(float, 0, 1)("1") == 1.0
    for kind, text, message in ((number(int, 1), "0", "0 must be at least 1"),
                                (number(float, 0, 1), "1.5", "1.5 must be at most 1"),
                                (number(float, 0), "nan", "nan must be at least 0")):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            kind(text)
    with pytest.raises(ValueError):
        number(int, 1)("two")
    assert number(float, 0).__name__ == "float"


def test_specs_are_checked_and_kept_as_they_are():
    check = spec_of(PENALTIES, "none")
    assert check("rdrop:weight=0.5") == "rdrop:weight=0.5" and check("none") == "none"
    for wrong in ("rdorp", "rdrop:wieght=1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="rdrop|weight"):
            check(wrong)


@pytest.mark.parametrize("flags", [["--epochs", "0"], ["--ema", "2"], ["--warmup", "-1"], ["--accumulate", "0"],
                                   ["--max_grad_norm", "0"], ["--lr_schedule", "step"], ["--penalty", "nothing"],
                                   ["--epoch", "3"], ["--save_every", "0"]])
def test_mistakes_end_with_usage(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        get_parser().parse_args(flags)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_given_is_what_was_said(tmp_path):
    given = get_parser().given
    assert given([]) == {}
    assert given(["--lr", "0", "--use_gpu", "--epochs", "10"]) == {"lr": 0.0, "use_gpu": True, "epochs": 10}
    (tmp_path / "a.args").write_text("--penalty rdrop\n--pooling mean sst=cls\n")
    assert given([f"@{tmp_path}/a.args", "--penalty", "none", "--pooling", "cls"]) == {
        "penalty": ["rdrop", "none"], "pooling": ["mean", "sst=cls", "cls"]}
    assert given(["--tasks", "sts", "sst"]) == {"tasks": ["sts", "sst"]}


def test_defaults_fill_what_is_not_there():
    args = completed(argparse.Namespace(option="pretrain", epochs=3), get_parser())
    assert (args.lr, args.epochs, args.batch_size) == (1e-3, 3, 32)
    assert completed(argparse.Namespace(fine_tune_mode="full-model", option="pretrain"), get_parser()).lr == 7e-6
    assert with_run_dir(argparse.Namespace(run_dir=None, filepath=None), "x").filepath == "runs/x/best.pt"
    alone = with_run_dir(argparse.Namespace(run_dir=None, filepath="a.pt"), "x")
    assert (alone.run_dir, alone.filepath) == (None, "a.pt")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A function that parses a command line and writes the args.json of the run that it begins."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()

    def stored(*flags):
        args = parsed(["--run_dir", "run", *flags])
        (tmp_path / "run" / "args.json").write_text(json.dumps({"args": vars(args)}))
        return args
    return stored


def test_a_resumed_run_remembers(stored, capsys):
    stored("--epochs", "3", "--lr", "0.5", "--penalty", "rdrop", "--pooling", "mean", "--task_batch_size", "para=64",
           "--tasks", "sts", "para")
    again = parsed(["--resume", "--run_dir", "run", "--lr", "0.25", "--epochs", "3"])
    assert (again.epochs, again.lr, again.penalty, again.tasks) == (3, 0.25, ["rdrop"], ["para", "sts"])
    assert again.task_batch_size == {"para": 64} and set(again.pooling.values()) == {"mean"}
    assert capsys.readouterr().out == "resume: --lr is 0.25 now, was 0.5\n"
    assert again.given["epochs"] == 3 and again.given["lr"] == 0.25
    # Without --resume nothing is remembered.
    assert parsed(["--run_dir", "run"]).epochs == 10


def test_a_run_of_when_a_flag_was_one_word_is_resumed(stored, tmp_path):
    began = stored("--pair_encoding", "bi", "--pair_score", "product")
    path = tmp_path / "run" / "args.json"
    contents = json.loads(path.read_text())
    assert contents["args"]["given"]["pair_encoding"] == ["bi"]
    contents["args"]["given"].update(pair_encoding="bi", pair_score="product")
    path.write_text(json.dumps(contents))
    again = parsed(["--resume", "--run_dir", "run"])
    assert (again.pair_encoding, again.pair_score) == (began.pair_encoding, began.pair_score)
    assert set(again.pair_encoding.values()) == {"bi"} and set(again.pair_score.values()) == {"product"}
    with pytest.raises(UserError, match="--pair_encoding is .* but the run in run began with"):
        parsed(["--resume", "--run_dir", "run", "--pair_encoding", "sts=bi", "--pair_score", "sts=product"])


def test_a_default_that_has_changed_is_not_taken_over(stored, monkeypatch, capsys):
    before = stored("--epochs", "3").lr
    monkeypatch.setitem(multitask_classifier.LEARNING_RATES, "finetune", 0.125)
    resume = ["--resume", "--run_dir", "run"]
    assert parsed(resume).lr == before != 0.125 and "--lr" not in capsys.readouterr().out
    assert parsed([*resume, "--lr", "0.5"]).lr == 0.5


@pytest.mark.parametrize("flags", [["--seed", "3"], ["--tasks", "sst"], ["--fine-tune-mode", "last-linear-layer"]])
def test_what_a_resumed_run_must_keep(flags, stored):
    stored()
    with pytest.raises(UserError, match="began with .*; leave the flag out"):
        parsed(["--resume", "--run_dir", "run", *flags])


def test_batch_sizes_of_tasks():
    assert batch_sizes(None) == {}
    assert batch_sizes(["para=64", "sst=8", "para=32"]) == {"para": 32, "sst": 8}
    for wrong in ("mnli=8", "para", "para=0", "para=x", "=8", "para=-1"):
        with pytest.raises(UserError, match=f"--task_batch_size {wrong}: give TASK=N"):
            batch_sizes([wrong])
    args = multitask_classifier.get_args(["--task_batch_size", "sst=4", "--task_batch_size", "sts=2"])
    assert args.task_batch_size == {"sst": 4, "sts": 2}


def test_flags_are_not_abbreviated_and_help_names_defaults(capsys):
    parser = ArgumentParser("Count things.", first=("count",))
    parser.add_argument("--count", type=int, default=7, help="how many")
    parser.add_argument("--name", help="of what")
    with pytest.raises(SystemExit):
        parser.parse_args(["--cou", "3"])
    assert "how many (default: 7)" in parser.short_help() and "--name" not in parser.short_help()
    assert "--name NAME" in parser.full_help() and "None" not in parser.full_help()
    for flag, text in (("-h", parser.short_help()), ("--help-all", parser.full_help())):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([flag])
        assert stop.value.code == 0 and capsys.readouterr().out == text


@pytest.mark.parametrize("flag, likely", [
    ("--learning_rate", "--lr"), ("--bs", "--batch_size"), ("--cuda", "--use_gpu"), ("--output_dir", "--run_dir"),
    ("--lora", "--adapt lora"), ("--pcgrad", "--gradient pcgrad"), ("--epoch", "--epochs")])
def test_an_unknown_flag_names_the_likely_one(flag, likely, capsys):
    with pytest.raises(SystemExit):
        get_parser().given([flag, "1"])
    assert f"unknown: {flag}" in (said := capsys.readouterr().err) and f"did you mean {likely}" in said


@pytest.mark.parametrize("flags, schedule, said", [
    (["--gradient", "pcgrad"], "round-robin:end=longest", "--gradient pcgrad needs batches of several tasks"),
    (["--task_weights", "uncertainty"], "round-robin:end=longest", "--task_weights uncertainty needs batches"),
    (["--task_weights", "fixed:sst=2"], "round-robin:end=longest", "--task_weights fixed:sst=2 needs batches"),
    (["--task_weights", "fixed"], "proportional", None), (["--gradient", "sum"], "proportional", None),
    (["--gradient", "pcgrad", "--schedule", "even"], "even", None)])
def test_techniques_that_need_joint_steps_bring_their_schedule(flags, schedule, said, capsys):
    args = multitask_classifier.get_args(flags)
    assert args.schedule == schedule
    note_techniques(args, {})
    out = capsys.readouterr().out
    assert (f"note: {said}" in out and out.count(schedule) == 1) if said else not out


def test_an_explicit_schedule_that_contradicts_stays_an_error():
    with pytest.raises(UserError, match="--schedule proportional has one task a step: leave --schedule out"):
        multitask_classifier.get_args(["--gradient", "pcgrad", "--schedule", "proportional"])
