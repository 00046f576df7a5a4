"""Files that may not be read, or whose disk fails half-way: one line that names the file, whatever reads it."""

import errno
import os

import pytest
import torch

from base_bert import load_tensors
from bert import BertModel
from config import BertConfig
from engine.checkpoint import load_checkpoint
from engine.run_folder import Run
from multitask_classifier import get_parser
from prepare_submit import prediction_ids, problems_in
from tasks import PARAPHRASE, read_rows
from tests.helpers.faults import contents, failing, refused
from tests.helpers.fixtures_tiny import course_rows, tiny_vocab, write_course_file
from tokenizer import BertTokenizer


@pytest.fixture
def folder(tmp_path):
    """A folder with one file of every kind that the scripts read."""
    BertModel(BertConfig(vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=3,
                         intermediate_size=20)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocab()) + "\n")
    torch.save({"bias": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    torch.save({"model": {}, "optim": {}, "args": {}, "model_config": {}}, tmp_path / "best.pt")
    write_course_file(tmp_path / "quora-dev.csv", course_rows("quora-dev.csv", 8))
    (tmp_path / "sst-dev-output.csv").write_text("id \t Predicted_Sentiment \na , 1 \n")
    (tmp_path / "args.json").write_text('{"args": {}}')
    (tmp_path / "own.args").write_text("--epochs 3\n")
    return tmp_path


READERS = {
    "quora-dev.csv": ("a data file", lambda path: read_rows(path, PARAPHRASE)),
    "best.pt": ("a checkpoint", load_checkpoint),
    "pytorch_model.bin": ("weights, pickled,", load_tensors),
    "model.safetensors": ("weights, safetensors,", load_tensors),
    "config.json": ("a config.json", BertConfig.from_pretrained),
    "vocab.txt": ("a vocabulary", BertTokenizer),
    "sst-dev-output.csv": ("a prediction file", lambda path: problems_in(path, "sst", ["a"])),
    "args.json": ("the arguments of a run", lambda path: Run(str(path.parent)).stored_arguments()),
}


@pytest.mark.parametrize("what, number, how", [("open", errno.EACCES, "may not be opened"),
                                               ("read", errno.EIO, "cannot be read: its disk fails")])
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_cannot_be_read(name, what, number, how, folder, capsys, record):
    kind, read = READERS[name]
    path = folder / name
    read(path)
    before = contents(folder)
    with failing(what, number, f"*/{name}"):
        said = refused(lambda: read(path), capsys)
    assert str(path) in said and os.strerror(number) in said
    assert "damaged" not in said and "run code" not in said  # for all that is known, it is whole
    assert contents(folder) == before
    record("Data files" if name.endswith("v") else "Hostile files", f"{kind} that {how}",
           "an error that names the file and the reason", said, folder=folder)


def test_a_disk_that_fails_half_way(folder, capsys):
    path = write_course_file(folder / "quora-train.csv", course_rows("quora-train.csv", 5_000))
    for read in (lambda: read_rows(path, PARAPHRASE), lambda: prediction_ids(path, PARAPHRASE)):
        with failing("read", errno.EIO, "*/quora-train.csv", call=1):
            assert str(path) in refused(read, capsys)


@pytest.mark.parametrize("what, number", [("open", errno.EACCES), ("read", errno.EIO)])
def test_a_file_of_flags(what, number, folder, capsys):
    with failing(what, number, "*/own.args"), pytest.raises(SystemExit) as stop:
        get_parser().given([f"@{folder}/own.args"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "own.args" in said and os.strerror(number) in said
    assert get_parser().given([f"@{folder}/own.args"]) == {"epochs": 3}
