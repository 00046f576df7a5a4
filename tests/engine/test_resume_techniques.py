"""Techniques with a state, in real runs: stopped and resumed, they end bit for bit as if undisturbed."""

import pytest

from tests.helpers.script_runs import RUN, STOP_AFTER, data, difference, flags_of, outcome, script  # noqa: F401

RUNS = {
    "GradVac and uncertainty": ["--schedule", "round-robin", "--gradient", "gradvac:beta=0.3", "--task_weights",
                                "uncertainty", "--max_steps", "5"],
    "PCGrad and loss scale": ["--schedule", "even", "--gradient", "pcgrad", "--task_weights", "loss-scale",
                              "--accumulate", "2", "--max_steps", "5"],
    "CAGrad and dynamic averages": ["--schedule", "round-robin", "--gradient", "cagrad", "--task_weights", "dwa",
                                    "--epochs", "4"],
    "annealed, PALs, heads and pooling": ["--schedule", "annealed", "--adapt", "pals:size=8,heads=2", "--pooling",
                                          "layers", "sst=attention", "--loss", "sst=ordinal", "--epochs", "2"],
}
ALL = ["--adapt", "mixout:p=0.5", "--accumulate", "2", "--max_steps", "4", "--schedule", "round-robin",
       "--pair_encoding", "bi"]
for penalty in ("smart:steps=2", "bregman:beta=0.5", "fgm", "l2sp:alpha=0.1"):
    ALL += ["--penalty", penalty]


RUNS["all regularizers"] = ALL


@pytest.mark.parametrize("name", RUNS)
def test_resumed_as_if_undisturbed(name, script, data, tmp_path):  # noqa: F811
    flags = flags_of(data, *RUNS[name])
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    code, said = script.run(tmp_path / "whole", *flags)
    assert code == 0, said
    code, said = script.run(tmp_path / "stopped", *flags, before=STOP_AFTER.format(step=2))
    assert code != 0 and "stopped at step 2 of" in said
    code, said = script.run(tmp_path / "stopped", "--resume", "--run_dir", RUN)
    assert code == 0, said
    assert difference(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")) is None


@pytest.mark.parametrize("flags", [["--option", "pretrain"], ["--adapt", "freeze:layers=first-1"]])
def test_begun_with_other_weights_of_the_encoder(flags, script, data, tmp_path):  # noqa: F811
    """What is computed of frozen weights before the run is taken up is computed of --init's, not of the pretrained."""
    for folder in ("first", "whole", "stopped"):
        (tmp_path / folder).mkdir()
    code, said = script.run(tmp_path / "first", *flags_of(data, "--epochs", "1", "--lr", "1e-3"))
    assert code == 0, said
    flags = flags_of(data, *flags, "--init", str(tmp_path / "first" / RUN / "best.pt"), "--penalty", "bregman:beta=0.5",
                     "--epochs", "2")
    code, said = script.run(tmp_path / "whole", *flags)
    assert code == 0, said
    code, said = script.run(tmp_path / "stopped", *flags, before=STOP_AFTER.format(step=2))
    assert code != 0 and "stopped at step 2 of" in said
    (tmp_path / "first" / RUN / "best.pt").unlink()  # going on takes the run's own files alone
    code, said = script.run(tmp_path / "stopped", "--resume", "--run_dir", RUN)
    assert code == 0, said
    assert difference(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")) is None
