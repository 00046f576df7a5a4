"""Two processes that torchrun starts, over Gloo, against one with the same global batch; and one of them killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.script_runs import (  # noqa: F401
    ROOT,
    RUN,
    checkpoint,
    data,
    difference,
    flags_of,
    metrics,
    outcome,
    predictions,
    script,
)

NO_DROPOUT = ["--hidden_dropout_prob", "0", "--encoder_dropout_prob", "0"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not torch.distributed.is_gloo_available(),
                                reason="needs fork and Gloo")


def torchrun(data, folder, *flags, restarts=0):  # noqa: F811
    """Start the script in two processes; return the launcher."""
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         f"--max-restarts={restarts}", str(ROOT / "multitask_classifier.py"), *flags],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "MINBERT_CACHE": str(data / "cache"), "OMP_NUM_THREADS": "1",
             "MINBERT_HUB": "http://127.0.0.1:9"})


def ended(launcher, well=True):
    try:
        said = launcher.communicate(timeout=120)[0]
    finally:
        launcher.kill()
    assert (launcher.returncode == 0) == well, said
    return said


def assert_close(one, other, tolerance):
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}")


def numbers_of(value):
    """Return all numbers in nested metrics, in order."""
    if isinstance(value, dict):
        return [number for name in sorted(value) for number in numbers_of(value[name])]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("more", [
    [], ["--schedule", "round-robin", "--task_weights", "uncertainty:lr=0.01", "--penalty", "l2sp:alpha=1",
         "--penalty", "bregman:beta=0.5"]])
def test_two_processes_do_what_one_does(more, script, data, tmp_path):  # noqa: F811
    """Batches of 7 rows do not divide by two; the last one of a task's 20 rows has 6, and with batches of 19, 1."""
    flags = flags_of(data, *NO_DROPOUT, "--batch_size", "7", "--task_batch_size", "sts=19", "--epochs", "2", *more)
    launcher = torchrun(data, tmp_path / "two", *flags)
    (tmp_path / "one").mkdir()
    code, said = script.run(tmp_path / "one", *flags)
    assert code == 0, said
    said = ended(launcher)
    assert said.count("parameters trained") == 1, said  # the main process alone speaks

    one, two = (outcome(tmp_path / name) for name in ("one", "two"))
    for name in ("best.pt", "last.pt"):
        assert_close(one[name]["model"], two[name]["model"], 1e-5)
    assert len(two["last.pt"]["processes_rng"]) == 2
    assert len(one["metrics"]) == len(two["metrics"])
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        for scored in a.keys() & {"dev", "train"}:  # a correlation of twenty rows hangs on roundings
            assert a[scored].pop("sts") == pytest.approx(b[scored].pop("sts"), abs=5e-4)
        assert a.keys() == b.keys() and numbers_of(a) == pytest.approx(numbers_of(b), abs=2e-4)
    assert set(one["predictions"]) == set(two["predictions"]) and len(two["predictions"]) == 6
    for name, text in one["predictions"].items():
        a, b = (content.decode().splitlines() for content in (text, two["predictions"][name]))
        assert [line.split(" , ")[0] for line in a] == [line.split(" , ")[0] for line in b]  # file order
        if not name.startswith("sts"):
            assert a == b
    assert ({path.name for path in (tmp_path / "one" / RUN).iterdir()}
            == {path.name for path in (tmp_path / "two" / RUN).iterdir()})


def workers_of(launcher):
    """Return {rank: process id} of a launcher's workers."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rsplit(")", 1)[1].split()[1]) == launcher.pid:
                environment = dict(entry.split(b"=", 1) for entry in (process / "environ").read_bytes().split(b"\0")
                                   if b"=" in entry)
                if b"RANK" in environment:
                    found[int(environment[b"RANK"])] = int(process.name)
        except OSError:  # it is gone already
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers in /proc")
def test_a_worker_killed_in_mid_epoch_is_replaced(data, tmp_path):  # noqa: F811
    """With dropout: each process goes on with its own random numbers."""
    flags = flags_of(data, "--epochs", "6", "--ema", "0.9")
    calm = torchrun(data, tmp_path / "calm", *flags)
    ended(calm)
    end = outcome(tmp_path / "calm")

    launcher = torchrun(data, tmp_path / "killed", *flags, restarts=1)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / RUN / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    said = ended(launcher)
    resumed = next(line for line in said.splitlines() if line.startswith(f"resume {RUN} at step"))
    assert 2 <= int(resumed.split()[4]) < 54, resumed
    assert difference(end, outcome(tmp_path / "killed")) is None


def test_a_mistake_is_reported_once(data, tmp_path):  # noqa: F811
    for name, flag, value in (("typo", "--schedule", "round-robbin"), ("nowhere", "--sst_train", "nowhere.csv")):
        said = ended(torchrun(data, tmp_path / name, *flags_of(data), flag, value), well=False)
        assert said.count("error: ") == 1 and value in said, said


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the workers in /proc")
def test_the_one_that_is_left_says_so_in_one_line(data, tmp_path):  # noqa: F811
    launcher = torchrun(data, tmp_path / "killed", *flags_of(data, "--epochs", "20"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / RUN / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert (tmp_path / "killed" / RUN / "last.pt").exists()
    os.kill(workers_of(launcher)[1], signal.SIGKILL)
    said = ended(launcher, well=False)
    assert said.count("error: another process of this training has ended") == 1 and "in run_script" not in said, said


def test_signals_reach_every_process(data, tmp_path):  # noqa: F811
    launcher = torchrun(data, tmp_path / "two", *flags_of(data, "--epochs", "50", "--log_every", "2"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "two" / RUN / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=60)[0]
    training = checkpoint(tmp_path / "two" / RUN / "last.pt")["training"]
    assert launcher.returncode != 0 and f"stopped at step {training['step']} of 450; go on with --resume" in said
