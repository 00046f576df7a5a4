"""A real run, killed at random moments and resumed, ends bit for bit as if nobody had disturbed it."""

import random
import signal
import time

import pytest

from tests.helpers.script_runs import RUN, data, difference, flags_of, outcome, script  # noqa: F401

VARIANTS = {
    "ema": ["--ema", "0.9", "--epochs", "4"],
    "rdrop": ["--penalty", "rdrop", "--epochs", "3", "--accumulate", "2"],
    "frozen": ["--option", "pretrain", "--epochs", "5", "--eval_every", "7", "--lr_schedule", "cosine"],
}


def resume_flags(folder, flags):
    """Return the flags that take a run up: none is repeated, once the run has written down its own."""
    return ["--resume", "--run_dir", RUN] if (folder / RUN / "args.json").exists() else ["--resume", *flags]


class After:
    """The moment so many seconds from now."""

    def __init__(self, seconds):
        self.time = time.monotonic() + seconds

    def __call__(self):
        return time.monotonic() >= self.time


class InSave:
    """The moment in which the n-th temporary file of a save is there from now on."""

    def __init__(self, folder, n, name=""):
        self.folder, self.n, self.name = folder / RUN, n, name
        self.old, self.seen = self.temporaries(), set()

    def temporaries(self):
        return {path.name for path in self.folder.glob(f".{self.name}*.tmp")} if self.folder.exists() else set()

    def __call__(self):
        new = self.temporaries() - self.old
        self.seen |= new
        return bool(new) and len(self.seen) >= self.n

    def hit(self):
        """Tell whether a save was cut off: its file was left."""
        return bool(self.temporaries() - self.old)


class BetweenSaves:
    """The moment after best.pt has been replaced, when last.pt is of the scoring before."""

    def __init__(self, folder):
        self.paths = [folder / RUN / name for name in ("best.pt", "last.pt")]
        self.before = self.versions()

    def versions(self):
        return [path.stat().st_ino if path.exists() else None for path in self.paths]

    def __call__(self):
        return self.versions()[0] != self.before[0]

    def hit(self):
        """Tell whether the run was killed between the two."""
        now = self.versions()
        return now[0] != self.before[0] and now[1] == self.before[1]


@pytest.mark.parametrize(("variant", "kills"), [("ema", 7), ("rdrop", 7), ("frozen", 6)])
def test_twenty_kills_leave_no_trace(variant, kills, script, data, tmp_path):  # noqa: F811
    """Of the kills, two are meant for a save, one for the time between best.pt and last.pt, the others for any time."""
    flags, rng = flags_of(data, *VARIANTS[variant]), random.Random(variant)
    for name in ("warm", "undisturbed"):  # the first fills the caches
        (tmp_path / name).mkdir()
        start = time.monotonic()
        code, said = script.run(tmp_path / name, *flags)
        assert code == 0, said
    end, seconds = outcome(tmp_path / name), time.monotonic() - start
    assert len(end["predictions"]) == 6 and len(end["metrics"]) > 8
    planned = [lambda folder: After(rng.uniform(0, 0.9 * seconds))] * (kills - 3) + [
        lambda folder: InSave(folder, rng.randint(1, 4), "last.pt"), lambda folder: InSave(folder, 1, "best.pt"),
        BetweenSaves]
    rng.shuffle(planned)
    attempts, hits, in_saves = 0, 0, 0
    folder = tmp_path / "0"
    while planned:
        attempts += 1
        assert attempts < 10 * kills, f"only {hits} kills hit"
        if not folder.exists():
            folder.mkdir()
        moment = planned[0](folder)
        script.start(folder, *resume_flags(folder, flags))
        code, said = script.signal_when(moment, signal.SIGKILL)
        if code == -signal.SIGKILL:
            hits += 1
            in_saves += getattr(moment, "hit", bool)()
            if getattr(moment, "hit", lambda: True)():
                del planned[0]
        else:  # it came to its end before the moment: the next kill is of another run
            assert code == 0, said
            assert difference(end, outcome(folder)) is None
            folder = tmp_path / str(attempts)
    if folder.exists():
        code, said = script.run(folder, *resume_flags(folder, flags))
        assert code == 0, said
        assert difference(end, outcome(folder)) is None
        assert not list((folder / RUN).glob(".*.tmp"))
    print(f"{variant}: {hits} kills, {in_saves} of them in saves, in {attempts} starts")
    assert hits >= kills and in_saves >= 3
