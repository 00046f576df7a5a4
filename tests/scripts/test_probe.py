"""scripts/probe.py: its runs over both kinds of checkpoint, without one, and on mistakes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets import SentenceClassificationDataset
from extensions.heads.pooling import hidden_states_of
from files.errors import run_script
from scripts import probe
from tests.helpers.fixtures_tiny import tiny_bert_dir, write_course_files
from tests.helpers.regularizer_cases import tiny_model


def test_hidden_states_are_those_before_pooling_whatever_the_padding(bert_dir):
    model = tiny_model(bert_dir)
    data = SentenceClassificationDataset(
        [("a good film", 0, "x"), ("the cat sits on a dull book", 1, "y")], SimpleNamespace(pretrained=bert_dir))
    states, entropies, labels = probe.encode(model.bert, data, "sst", torch.device("cpu"))
    assert states.shape == (2, 2, 24) and len(entropies) == 1 and len(entropies[0]) == 2
    assert sorted(labels.tolist()) == [0, 1]
    row = data.collate_fn(data.dataset[:1])  # the shorter one, of label 0
    with hidden_states_of(model.bert) as found, torch.no_grad():
        model.bert(row["token_ids"], row["attention_mask"])
    alone = torch.stack([state.mean(1)[0] for state in found])
    torch.testing.assert_close(states[:, labels.tolist().index(0)], alone, rtol=1e-4, atol=1e-5)


@pytest.fixture
def folder(tmp_path, bert_dir, monkeypatch):
    """Stand in a folder with data/ and two-layer weights in bert/."""
    write_course_files(tmp_path / "data", rows=24)
    tiny_bert_dir(tmp_path / "bert", hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *argv):
    """Return (exit code, results.json, table.md, output, error) of a run of the script."""
    code = 0
    try:
        run_script(lambda: probe.main([*argv, "--data_dir", "data", "--rows", "20", "--out", "out"]))
    except SystemExit as stop:
        code = stop.code
    said, out = capsys.readouterr(), Path("out")
    results = json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else None
    return code, results, (out / "table.md").read_text() if results else "", said.out, said.err


def test_the_pretrained_weights_alone(folder, capsys):
    code, results, table, said, _ = run(capsys, "--pretrained", "bert")
    assert code == 0 and set(results["probes"]) == {"pretrained"} and "pruned" not in results
    assert {task: len(scores) for task, scores in results["probes"]["pretrained"].items()} == {
        "sst": 3, "para": 3, "sts": 3}
    assert np.diag(results["cka"]) == pytest.approx([1.0] * 3) and np.shape(results["entropy"]["pretrained"]) == (2, 2)
    assert table in said and "| layer 2 |" in table and "Linear CKA, pretrained (rows) with pretrained" in table


@pytest.mark.parametrize("script, flags, tasks", [
    ("multitask_classifier.py", ["--pair_encoding", "bi"], {"sst", "para", "sts"}),
    ("multitask_classifier.py", ["--adapt", "pals:heads=2", "--tasks", "sst", "sts"], {"sst", "sts"}),
    ("multitask_classifier.py", ["--adapt", "task-layers", "--loss", "sts=cosine"], {"sst", "para", "sts"}),
    ("multitask_classifier.py", ["--adapt", "prompt", "--tasks", "sst"], {"sst"}),
    ("multitask_classifier.py", "--tasks sst --attention mha:heads=4 --adapt extra-attention".split(), {"sst"}),
    ("classifier.py", ["--dataset", "sst"], {"sst"}), ("classifier.py", ["--dataset", "cfimdb"], {"cfimdb"})])
def test_both_kinds_of_checkpoints(script, flags, tasks, folder, capsys):
    root = Path(probe.__file__).parents[1]
    subprocess.run([sys.executable, root / script, "--pretrained", "bert", "--option", "finetune", "--epochs", "1",
                    "--lr", "1e-2", "--run_dir", "run", *flags], check=True, capture_output=True)
    code, results, table, _, error = run(capsys, "run/best.pt")
    assert code == 0, error
    assert set(results["probes"]) == set(results["entropy"]) == {"pretrained", "tuned"}
    assert "Importance of heads" in table
    heads = [len(layer) for layer in results["importance"]]
    assert heads == ([4, 4, 2] if "extra-attention" in flags else [2, 2])
    assert [row["heads"] for row in results["pruned"]] == [round(sum(heads) * share) for share in probe.SHARES]
    assert set(results["pruned"][0]) == {"share", "heads", "score", *tasks}
    assert results["cka"][-1][-1] < 1.0 - 1e-9 and results["pretrained"] == "bert"
    assert "Dev score with the least important heads pruned" in table and f"| 50% | {sum(heads) // 2} |" in table


def test_the_picture_is_an_extra(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    code, _, _, said, error = run(capsys, "--pretrained", "bert", "--tasks", "sst")
    assert code == 0 and not Path("out/picture.png").exists()
    assert said.splitlines()[-1] == "note: no picture, as matplotlib is not installed; `pip install matplotlib`"
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    pytest.importorskip("matplotlib")
    run(capsys, "--pretrained", "bert", "--tasks", "sst")
    assert Path("out/picture.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("argv, words", [
    (["nowhere.pt"], "no checkpoint nowhere.pt"), (["data/sts-dev.csv"], "is not a checkpoint"),
    (["--pretrained", "bert", "--rows", "0"], "at least 10")])
def test_mistakes(argv, words, folder, capsys):
    code, results, _, _, error = run(capsys, *argv)
    if "--rows" in argv:
        with pytest.raises(SystemExit):
            probe.get_args(argv)
        assert words in capsys.readouterr().err
        return
    assert code == 2 and results is None and words in error and "Traceback" not in error


def test_missing_files_are_named_before_any_work(folder, capsys):
    Path("data/sts-dev.csv").unlink()
    code, results, _, _, error = run(capsys, "--pretrained", "bert")
    assert code == 2 and results is None and "sts-dev.csv" in error
    assert run(capsys, "--pretrained", "bert", "--tasks", "sst", "para")[0] == 0


