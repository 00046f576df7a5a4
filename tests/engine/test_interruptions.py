"""A run that a signal or a full disk ends, is begun anew, taken up with other flags, or taken up after its end."""

import signal

import pytest

from tests.helpers.script_runs import (  # noqa: F401
    RUN,
    STOP_AFTER,
    checkpoint,
    data,
    difference,
    flags_of,
    metrics,
    outcome,
    predictions,
    script,
)

RESUME = ["--resume", "--run_dir", RUN]
EPOCHS = ["--epochs", "3", "--ema", "0.5"]
# Scoring takes for ever, once the file "scoring" is there to tell.
SLOW_SCORING = """
import pathlib, time
score = script.evaluate_tasks
def slow(*args):
    if step_of_scoring() >= {n}:
        pathlib.Path("scoring").touch()
        time.sleep(60)
    return score(*args)
calls = []
def step_of_scoring():
    calls.append(1)
    return len(calls)
script.evaluate_tasks = slow
"""


@pytest.fixture(scope="module")
def ends():
    return {}


@pytest.fixture
def end(ends, script, data, tmp_path):  # noqa: F811
    """What the undisturbed run leaves."""
    if not ends:
        (tmp_path / "undisturbed").mkdir()
        code, said = script.run(tmp_path / "undisturbed", *flags_of(data, *EPOCHS))
        assert code == 0, said
        ends.update(outcome(tmp_path / "undisturbed"))
    return ends


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_tells_how_to_go_on(signum, code, end, script, data, folder):  # noqa: F811
    script.start(folder, *flags_of(data, *EPOCHS))
    ended, said = script.signal_when((folder / RUN / "last.pt").exists, signum)
    assert ended == code, said
    assert "stopping after this step" in said and "Traceback" not in said
    training = checkpoint(folder / RUN / "last.pt")["training"]
    assert f"stopped at step {training['step']} of 27; go on with --resume --run_dir {RUN}" in said
    assert not training["finished"] and not predictions(folder)
    ended, said = script.run(folder, *RESUME)
    assert ended == 0 and f"resume {RUN} at step {training['step']} of 27" in said
    assert difference(end, outcome(folder)) is None


@pytest.mark.parametrize(("step", "flag", "fewer", "again"), [(20, "--epochs", 2, 3), (5, "--max_steps", 3, 27)])
def test_a_run_that_is_given_fewer_steps_than_it_has_taken(step, flag, fewer, again, script, data, folder):  # noqa: F811
    """It is scored and ends; given more again, it goes on."""
    ended, said = script.run(folder, *flags_of(data, *EPOCHS), before=STOP_AFTER.format(step=step))
    assert ended == 143, said
    for number, end in ((fewer, step), (again, 27)):
        ended, said = script.run(folder, *RESUME, flag, str(number))
        assert ended == 0, said
        assert [line["step"] for line in metrics(folder / RUN) if line["kind"] == "score"][-1] == end
        assert predictions(folder)


@pytest.mark.parametrize("n", [1, 3, 6])  # dev of the first epoch, of the second, the training sample of the last
def test_a_signal_in_a_scoring_ends_it_at_once(n, end, script, data, folder):  # noqa: F811
    script.start(folder, *flags_of(data, *EPOCHS), before=SLOW_SCORING.format(n=n))
    ended, said = script.signal_when((folder / "scoring").exists, signal.SIGTERM)
    assert ended == 143 and f"stopped at step {(n + 1) // 2 * 9} of 27; go on with --resume" in said
    assert script.run(folder, *RESUME)[0] == 0
    assert difference(end, outcome(folder)) is None


def test_a_signal_in_the_last_save_is_no_success(end, script, data, folder):  # noqa: F811
    before = """
import os, signal
save, sent = script.save_model, []
def saving(*args, **more):
    if more.get("training", {}).get("finished") and not sent:
        sent.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
    save(*args, **more)
script.save_model = saving
"""
    ended, said = script.run(folder, *flags_of(data, *EPOCHS), before=before)
    assert ended == 143 and "stopped at step 27 of 27; go on with --resume" in said and not predictions(folder)
    assert script.run(folder, *RESUME)[0] == 0
    assert difference(end, outcome(folder)) is None


def test_a_second_signal_does_not_wait(script, data, folder):  # noqa: F811
    before = """
import os, signal
from engine.step import TrainingStep
def step(self, parts):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit(7)
TrainingStep.__call__ = step
"""
    ended, said = script.run(folder, *flags_of(data), before=before)
    assert ended == 130 and "interrupted" in said and not (folder / RUN / "last.pt").exists()


# A file may not grow past 64 KB: a limit of the system's own, which a checkpoint of this model exceeds.
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
FULL_FOR_TORCH = """
import errno, torch
def save(contents, file):
    file.write(b"x" * 1000)
    raise OSError(errno.ENOSPC, "No space left on device")
torch.save = save
"""


@pytest.mark.parametrize("before, remedy", [(FULL_DISK, "or name another place"), (FULL_FOR_TORCH, "make room there")])
def test_a_full_disk_leaves_the_checkpoint_before(before, remedy, end, script, data, folder):  # noqa: F811
    script.start(folder, *flags_of(data, *EPOCHS), before=SLOW_SCORING.format(n=3))
    assert script.signal_when((folder / "scoring").exists, signal.SIGTERM)[0] == 143
    kept = {name: (folder / RUN / name).read_bytes() for name in ("best.pt", "last.pt")}
    ended, said = script.run(folder, *RESUME, before=before)
    assert ended == 2 and "Traceback" not in said
    assert "cannot be written" in said and f"{remedy}; {RUN}/last.pt is whole, --resume goes on from it" in said
    assert kept == {name: (folder / RUN / name).read_bytes() for name in kept}
    assert not list((folder / RUN).glob(".*.tmp"))
    assert script.run(folder, *RESUME)[0] == 0
    assert difference(end, outcome(folder)) is None


def test_a_device_that_is_full(script, data, folder):  # noqa: F811
    ended, said = script.run(folder, *flags_of(data, "--filepath", "/dev/full"))
    assert ended == 2 and "/dev/full cannot be written" in said and "No space left on device" in said
