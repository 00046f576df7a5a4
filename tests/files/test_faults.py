"""What a full disk, a failing device or a missing permission leaves behind: the file of before, or none, and a message.

Those of a run's own files are in test_faults_runs.py, of whole runs in test_interruptions.py.
"""

import errno
import os
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import prepare_submit
from engine import batching, token_cache
from files.predictions import record_weights, write_predictions
from files.writing import atomic_write
from tasks import TASKS
from tests.helpers.faults import KINDS, STEPS, contents, failing, refused

LINES = ["a line of text\n"] * 5_000


def write_long(path):
    with atomic_write(path) as file:
        file.writelines(LINES)


@pytest.mark.parametrize("what, call, step", STEPS)
def test_every_step_of_a_write(what, call, step, tmp_path, capsys, record):
    path = tmp_path / "table.csv"
    for number in KINDS:
        with failing(what, number, "*table.csv*", call):
            said = refused(lambda: write_long(path), capsys)
        assert str(path) in said and os.strerror(number) in said and not contents(tmp_path)
        path.write_text("old")
        with failing(what, number, "*table.csv*", call):
            assert refused(lambda: write_long(path), capsys) == said
        assert contents(tmp_path) == {"table.csv": b"old"}
        path.unlink()
    record("Output files", f"{step} fails as a file is written: EACCES, ENOSPC or EIO",
           "the file of before or none, nothing beside it, and an error that names it", said, folder=tmp_path)


def test_folders_that_cannot_be_made_or_kept(tmp_path, capsys, record):
    for number in KINDS:
        with failing("makedirs", number, "*/new*"):
            said = refused(lambda: write_long(tmp_path / "new" / "table.csv"), capsys)
        assert "new" in said and os.strerror(number) in said and not list(tmp_path.iterdir())
    record("Output files", "the folder of a file cannot be made", "no file, and an error that names it", said,
           folder=tmp_path)
    with failing("fsync", errno.EIO, str(tmp_path)):  # after the rename: the new file is there, perhaps not for good
        said = refused(lambda: write_long(tmp_path / "table.csv"), capsys)
    assert "table.csv" in said and contents(tmp_path) == {"table.csv": "".join(LINES).encode()}


def test_prediction_files_and_their_record(tmp_path, capsys, record):
    path, ids = tmp_path / "sst-dev-output.csv", [f"id{i}" for i in range(5_000)]
    write_predictions(path, TASKS["sst"].header, ["a"], {"a": 0})
    record_weights(path, "minilm")
    before = contents(tmp_path)
    for what, call, _ in STEPS:
        with failing(what, errno.ENOSPC, "*sst-dev-output.csv*", call):
            said = refused(lambda: write_predictions(path, TASKS["sst"].header, ids, dict.fromkeys(ids, 1)), capsys)
        assert str(path) in said and contents(tmp_path) == before
    record("Output files", "the disk is full at any step of writing predictions",
           "the predictions of before, and an error that names the file", said, folder=tmp_path)
    for what, number in (("write", errno.ENOSPC), ("replace", errno.EACCES), ("open", errno.EACCES)):
        with failing(what, number, "*weights.json*"):
            assert "weights.json" in refused(lambda: record_weights(path, "bert-base-uncased"), capsys)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["makedirs", "open", "write", "fsync", "replace"])
def test_the_token_cache_costs_a_warning_alone(what, tmp_path, record):
    tokens = batching.Sequences(np.arange(50_000, dtype=np.int32), np.array([0, 50_000]))
    path = tmp_path / "tokens" / "key.safetensors"
    for number in KINDS:
        with failing(what, number, "*/tokens*"), pytest.warns(UserWarning) as caught:
            token_cache.save_tokens(path, tokens)
        said = str(caught[0].message)
        assert len(caught) == 1 and os.strerror(number) in said and "\n" not in said and not contents(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_cache.save_tokens(path, tokens)
    assert safetensors.numpy.load_file(path)["ids"].tolist() == tokens.ids.tolist()
    if what == "write":
        record("Output files", "the disk is full as tokens are kept for the next run", "a warning, and no file",
               said)


def test_the_zip(tmp_path, capsys, monkeypatch, record):
    monkeypatch.setattr(prepare_submit, "ROOT", tmp_path / "project")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "bert.py").write_bytes(os.urandom(30_000))
    out, prediction = tmp_path / "out" / "submission.zip", tmp_path / "sst-dev-output.csv"
    prediction.write_text("id")
    prepare_submit.write_zip(out, [prediction])
    before = contents(tmp_path)
    for what, call, _ in STEPS:
        with failing(what, errno.ENOSPC, "*submission.zip*", call):
            said = refused(lambda: prepare_submit.write_zip(out, [prediction]), capsys)
        assert "submission.zip" in said and contents(tmp_path) == before
    record("Output files", "the disk is full at any step of writing the submission",
           "the zip of before, and an error that names it", said, folder=tmp_path)
    for what, name in (("read", "bert.py"), ("open", "sst-dev-output.csv"), ("read", "sst-dev-output.csv")):
        with failing(what, errno.EIO, f"*/{name}"):
            assert name in refused(lambda: prepare_submit.write_zip(out, [prediction]), capsys)
        assert contents(tmp_path) == before and zipfile.ZipFile(out).testzip() is None
