"""classifier.py: both options from the command line to the files, and the frozen encoder's features."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import classifier
from bert import BertModel
from classifier import BertSentimentClassifier, SentimentDataset
from engine.batching import bucket_loader
from engine.feature_cache import FrozenFeatures, frozen_loader
from evaluation import collect
from files.errors import UserError
from tests.helpers.fixtures_tiny import course_rows

CPU = torch.device("cpu")


@pytest.fixture
def run(course_folder, monkeypatch, capsys):
    """Return a function that runs the script with these flags and gives what it printed."""
    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["classifier.py", *flags])
        classifier.main()
        return capsys.readouterr().out
    return run


def namespace(option="pretrain", **more):
    """Return the arguments of a run on the tiny SST files, without dropout and in whole batches."""
    return SimpleNamespace(**{
        "train": "data/ids-sst-train.csv", "dev": "data/ids-sst-dev.csv", "option": option, "epochs": 3,
        "batch_size": 8, "hidden_dropout_prob": 0.0, "filepath": "model.pt", "precision": "fp32", **more})


def sst_model(option="pretrain"):
    torch.manual_seed(11711)
    return BertSentimentClassifier(SimpleNamespace(num_labels=5, hidden_dropout_prob=0.3, option=option))


def files(pattern):
    return sorted(str(path) for path in Path().glob(pattern))


def test_two_options_make_eight_files_and_four_checkpoints(run):
    for option in ("pretrain", "finetune"):
        said = run("--option", option, "--epochs", "1", "--max_steps", "2")
        assert [line.split(":")[0] for line in said.splitlines()[-2:]] == [f"{option} sst", f"{option} cfimdb"]
    assert files("predictions/*.csv") == sorted(
        f"predictions/{option}-{name}-{split}-out.csv" for option in ("pretrain", "finetune")
        for name in ("sst", "cfimdb") for split in ("dev", "test"))
    checkpoints = {path: torch.load(path, weights_only=True) for path in files("runs/*/best.pt")}
    assert list(checkpoints) == [f"runs/{option}-{name}/best.pt" for option in ("finetune", "pretrain")
                                 for name in ("cfimdb", "sst")]
    for path, saved in checkpoints.items():
        assert (saved["args"]["option"], saved["model_config"]["option"]) == (path[5:13],) * 2
        assert len(saved["model"]["classifier.bias"]) == (5 if "sst" in path else 2)
        assert saved["args"]["lr"] == {"pretrain": 1e-3, "finetune": 1e-5}[path[5:13]]


def test_one_data_set_with_names_of_ones_own(run):
    run("--dataset", "cfimdb", "--filepath", "mine/best.pt", "--predictions_dir", "out", "--max_steps", "1")
    assert files("out/*.csv") == ["out/pretrain-cfimdb-dev-out.csv", "out/pretrain-cfimdb-test-out.csv"]
    assert files("mine/*.pt") == ["mine/best.pt"] and not files("runs/*") and not files("predictions/*")


def test_without_predictions_no_test_file_is_read(run):
    for path in Path("data").glob("*test*"):
        path.unlink()
    said = run("--dataset", "sst", "--skip_predictions", "--max_steps", "1")
    assert "pretrain sst: dev accuracy " in said and not files("predictions/*") and files("runs/*/best.pt")


def test_two_data_sets_need_two_checkpoints(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--filepath", "one.pt")
    assert stop.value.code == 2 and "--dataset" in capsys.readouterr().err


def test_frozen_features_are_computed_once_without_dropout(course_folder, monkeypatch):
    encoded, forward = [], BertModel.forward

    def counting(self, input_ids, *args):
        assert not self.training and not torch.is_grad_enabled()
        encoded.extend(input_ids.tolist())
        return forward(self, input_ids, *args)

    monkeypatch.setattr(BertModel, "forward", counting)
    classifier.train(namespace(epochs=3))
    assert len(encoded) == 8 + 8  # the rows of train and dev, whatever the number of epochs


def test_frozen_features_stand_in_the_rows_order(course_folder):
    rows = classifier.load_data("data/ids-sst-train.csv", "valid")
    data, model = SentimentDataset(rows, SimpleNamespace()), sst_model().train()
    features = FrozenFeatures(data, model, CPU, "sst", collect)
    assert len(features) == len(rows) == 8 and list(features.lengths()) == [1] * 8
    for i, row in enumerate(rows):
        batch, expected = features.collate_fn([i]), data.collate_fn([row])
        with torch.no_grad():
            [alone] = model.eval().encode("sst", expected)
        torch.testing.assert_close(batch["features"], alone, rtol=1e-4, atol=1e-5)
        assert batch["labels"].equal(expected["labels"])
        assert (batch["sents"], batch["sent_ids"]) == (expected["sents"], expected["sent_ids"])
    assert not features.features.requires_grad


def test_head_on_features_equals_training_through_the_frozen_model(course_folder, monkeypatch):
    trained = []
    for features in (frozen_loader, lambda loader, *_: loader):
        monkeypatch.setattr(classifier, "frozen_loader", features)
        accuracy = classifier.train(namespace(lr=0.05))
        trained.append((accuracy, torch.load("model.pt", weights_only=True)["model"]))
    start = BertModel.from_pretrained("bert-base-uncased").state_dict()
    assert trained[0][0] == trained[1][0]
    for name, tensor in trained[0][1].items():
        torch.testing.assert_close(tensor, trained[1][1][name], rtol=1e-4, atol=1e-5)
        if name.startswith("bert."):
            assert tensor.equal(start[name.removeprefix("bert.")])
    assert not trained[0][1]["classifier.weight"].allclose(sst_model().classifier.weight, atol=0.02)


def test_the_head_drops_features_and_the_frozen_encoder_drops_nothing(course_folder):
    data = SentimentDataset(classifier.load_data("data/ids-sst-train.csv", "valid"), SimpleNamespace())
    batch = next(iter(bucket_loader(data)))
    inputs = batch["token_ids"], batch["attention_mask"]
    for option, same in (("pretrain", True), ("finetune", False)):
        model = sst_model(option).train()
        assert model.encode("sst", batch)[0].equal(model.encode("sst", batch)[0]) == same
        assert not model(*inputs).equal(model(*inputs))
        assert {name for name, p in model.named_parameters() if p.requires_grad} == (
            {"classifier.weight", "classifier.bias"} if same else {name for name, _ in model.named_parameters()})


def test_max_length_and_truncation_of_the_checkpoint_hold_for_prediction(course_folder, monkeypatch):
    widths, forward = set(), BertModel.forward
    classifier.train(namespace("finetune", epochs=1, max_length=5, truncation="tail"))
    monkeypatch.setattr(BertModel, "forward", lambda self, ids, *args: (
        widths.add(ids.shape[1]), forward(self, ids, *args))[1])
    classifier.test(namespace("finetune", test="data/ids-sst-test-student.csv", dev_out="dev.csv", test_out="test.csv"))
    assert widths == {5}
    ids = [line.split(" , ")[0] for line in Path("test.csv").read_text().splitlines()[1:]]
    assert ids == [row[0] for row in course_rows("ids-sst-test-student.csv", 8)]


def test_other_weights_are_named_as_not_admitted(run, tiny_bert):
    assert "admit only bert-base-uncased" in run("--dataset", "sst", "--max_steps", "1", "--pretrained", str(tiny_bert))


def test_without_network_one_paragraph_names_three_ways_on(course_folder):
    """In a process of its own: exit code 2, no traceback."""
    environment = {**os.environ, "MINBERT_CACHE": "empty", "MINBERT_HUB": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, classifier.__file__, "--dataset", "sst"], env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [paragraph] = done.stderr.splitlines()
    assert paragraph.startswith("error: 'bert-base-uncased'")
    for way in ("--pretrained DIR", "--pretrained minilm", "put them into empty/bert-base-uncased", "127.0.0.1:9"):
        assert way in paragraph


def test_without_network_the_paragraph_names_all_files(course_folder, monkeypatch):
    monkeypatch.setenv("MINBERT_CACHE", "empty")
    with pytest.raises(UserError) as error:
        classifier.train(namespace())
    assert all(name in str(error.value) for name in ("config.json", "vocab.txt", "model.safetensors"))


def test_an_interrupted_run_is_resumed_by_the_folder_that_its_message_names(run):
    """Of two data sets' runs in one folder, that of the second, without a flag repeated."""
    run("--option", "finetune", "--lr", "1e-4", "--epochs", "1", "--max_steps", "1", "--run_dir", "mine")
    assert files("mine/*/last.pt") == ["mine/cfimdb/last.pt", "mine/sst/last.pt"]
    said = run("--resume", "--run_dir", "mine/cfimdb")
    assert "resume mine/cfimdb at step 1 of 1" in said and said.splitlines()[-1].startswith("finetune cfimdb: ")
    assert "sst" not in said and not files("runs/*")


def test_resuming_needs_a_folder(run):
    for flag in (["--resume"], ["--save_every", "3"]):
        with pytest.raises(UserError, match="need a folder"):
            run("--dataset", "sst", "--filepath", "one.pt", *flag)
