"""Room for the checkpoints before training, and files that several scripts write at once or that are damaged."""

import errno
import json
import os
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

import multitask_classifier
from engine import checkpoint
from engine.checkpoint import checkpoint_bytes, require_room, save_model
from engine.ema import ExponentialMovingAverage
from engine.loop import optimizer_settings
from engine.run_folder import Run
from engine.step import make_optimizer
from files.errors import UserError
from files.predictions import record_weights, write_predictions
from multitask_classifier import MultitaskBERT, complete, get_parser
from tests.helpers.faults import failing
from tests.helpers.fixtures_tiny import tiny_bert_dir
from tests.helpers.refusals import ended, tree

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(tiny_bert_dir(tmp_path_factory.mktemp("encoder"), hidden_size=96, num_attention_heads=2))


def model_and_args(encoder, *flags):
    args = complete(get_parser().parse_args(["--pretrained", encoder, *flags]))
    return MultitaskBERT(SimpleNamespace(**vars(args))), args


def require_room_of(model, args):
    require_room(model, args.filepath, args.run_dir, args.save, args.ema, args.resume)


def bytes_of(model, args):
    return checkpoint_bytes(model, args.save, args.ema)


@pytest.mark.parametrize("flags", [(), ("--option", "pretrain"), ("--ema", "0.9")])
def test_the_estimate_is_near_the_files(flags, encoder, tmp_path):
    model, args = model_and_args(encoder, *flags)
    optimizer = make_optimizer(model, **optimizer_settings(args))
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    average = ExponentialMovingAverage(model, 0.9).average if args.ema else None
    for name, expected, more in zip(("best.pt", "last.pt"), bytes_of(model, args),
                                    ({}, {"training": {"ema": average}}), strict=True):
        save_model(model, optimizer, args, model.config, str(tmp_path / name), **more)
        assert expected == pytest.approx((tmp_path / name).stat().st_size, rel=0.2)


def test_a_disk_with_too_little_room(course_folder, encoder, monkeypatch, capsys, record):
    best, last = bytes_of(*model_and_args(encoder, "--ema", "0.9"))
    needed = best + 2 * last
    before = tree(course_folder)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, needed - 1))
    monkeypatch.setattr(sys, "argv", ["multitask_classifier.py", "--pretrained", encoder, "--ema", "0.9"])
    said = ended(multitask_classifier.main, capsys)
    assert said.startswith("not enough room in ") and tree(course_folder) == before
    assert f"take {needed / 2**20:.0f} MiB ({best / 2**20:.0f} + {last / 2**20:.0f}, and the largest once more" in said
    assert f"{(needed - 1) / 2**20:.0f} MiB are free; make room, name a --run_dir on another disk" in said
    record("Output files", "a disk without room for the checkpoints",
           "one error with the numbers and the ways out, before training; no folder is made", said,
           folder=course_folder)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, needed))
    require_room_of(*model_and_args(encoder, "--ema", "0.9"))


def test_what_a_resumed_run_replaces_is_room(course_folder, encoder, monkeypatch):
    (course_folder / "one").mkdir()
    model, args = model_and_args(encoder, "--run_dir", "one", "--resume")
    best, last = bytes_of(model, args)
    for name, size in (("best.pt", best), ("last.pt", last)):
        with open(course_folder / "one" / name, "wb") as file:
            file.truncate(size)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, last))
    require_room_of(model, args)
    args.resume = False  # then the unfinished run that is there moves aside, and stays
    with pytest.raises(UserError, match="not enough room"):
        require_room_of(model, args)
    args.run_dir = None
    args.filepath = "one/best.pt"  # nothing moves aside
    require_room_of(model, args)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, best - 1))
    with pytest.raises(UserError, match="not enough room"):
        require_room_of(model, args)
    args.filepath = "/dev/null"
    require_room_of(model, args)


def test_whether_a_run_has_finished_is_told_without_reading_its_checkpoint(encoder, tmp_path, monkeypatch):
    model, args = model_and_args(encoder, "--run_dir", str(tmp_path))
    optimizer, run = make_optimizer(model, **optimizer_settings(args)), Run(args.run_dir)

    def save(finished):
        save_model(model, optimizer, args, model.config, run.last, training={"finished": finished})

    monkeypatch.setattr(checkpoint, "load_checkpoint", None)
    assert not Run(None).finished() and not run.finished()
    for finished in (True, False, True):
        save(finished)
        assert run.finished() == finished
    with failing("replace", errno.EIO, "*last.json"), pytest.raises(UserError):  # last.pt is another now
        save(False)
    assert not run.finished()
    save(True)
    (tmp_path / "last.json").write_text("{")
    assert not run.finished()


def at_once(*works):
    """Do each of `works` in a process of its own, all at the same time."""
    pids = []
    for work in works:
        pids.append(os.fork())
        if pids[-1] == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


def test_scripts_that_write_predictions_at_the_same_time(tmp_path, record):
    path, ids = str(tmp_path / "sst-dev-output.csv"), [f"id{i}" for i in range(500)]

    def script(number):
        for i in range(20):
            write_predictions(path, "id\n", ids, dict.fromkeys(ids, number))
            record_weights(str(tmp_path / f"{number}-{i}.csv"), "minilm")

    at_once(*(lambda number=number: script(number) for number in range(4)))
    lines = (tmp_path / "sst-dev-output.csv").read_text().splitlines()
    assert len(lines) == 501 and len({line.split(" , ")[1] for line in lines[1:]}) == 1
    assert len(json.loads((tmp_path / "weights.json").read_text())) == 80
    assert len(list(tmp_path.iterdir())) == 2
    record("Output files", "four scripts that write predictions into one folder at the same time",
           "each file is that of one of them, weights.json has the notes of all", "1 whole file, 80 of 80 notes")


@pytest.mark.parametrize("given, content", [
    ("a weights.json that was cut off", '{"a.csv": "minil'), ("a weights.json that holds a list", "[]"),
    ("an empty weights.json", ""), ("a weights.json nested 100,000 deep", "[" * 100_000),
])
def test_a_damaged_record_is_begun_anew(given, content, tmp_path, capsys, record):
    (tmp_path / "weights.json").write_text(content)
    record_weights(str(tmp_path / "sst-dev-output.csv"), "minilm")
    assert json.loads((tmp_path / "weights.json").read_text()) == {"sst-dev-output.csv": "minilm"}
    said = capsys.readouterr().out
    assert said.startswith("note: ") and "weights.json" in said and "begun anew" in said
    record("Output files", given, "a note, and the record is begun anew", said, folder=tmp_path)


def test_devices_have_no_record(tmp_path):
    record_weights("/dev/null", "minilm")
    assert not os.path.exists("/dev/weights.json")
