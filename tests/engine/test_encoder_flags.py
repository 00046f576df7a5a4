"""The flags of the encoder in both scripts, and checkpoints that leave out what training leaves alone."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

import classifier
import extensions
import multitask_classifier
from bert import BertModel
from engine.checkpoint import frozen_names, load_checkpoint, load_weights, weights_of
from engine.checks import note_model
from engine.model_config import load_encoder, read_config
from extensions.encoder import (
    EncoderTechnique,
    attach,
    chosen_layers,
    freeze,
    loaded_parameters,
    replace_modules,
    techniques_of,
)
from extensions.technique import Technique
from extensions.tuning._linears import merge, unmerge
from files.errors import UserError
from tests.helpers.fixtures_tiny import write_course_files
from tests.helpers.regularizer_cases import tiny_model


class Scaled(nn.Linear):
    """A linear layer with one parameter more."""

    def __init__(self, linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


def scaled(bert, start=1.0):
    """Freeze all that was loaded, and train a scale for every query."""
    freeze(bert)
    for layer in replace_modules(bert, lambda name, child: name.endswith("query"), Scaled):
        layer.scale.data.fill_(start)


@pytest.fixture
def with_scaled(monkeypatch):
    """Add the technique above to ADAPT."""
    monkeypatch.setitem(extensions.ADAPT, "scaled", Technique(
        "scaled", scaled, does="Trains scales.", use="In tests.", paper="none"))


def flags(folder, bert_dir, *more):
    return ["--pretrained", bert_dir, "--data_dir", str(folder / "data"), "--epochs", "1", "--lr", "1e-2",
            "--run_dir", str(folder / "run"), "--predictions_dir", str(folder / "predictions"), *more]


@pytest.mark.parametrize("what", ["all", "trained"])
def test_a_run_saved_whole_or_in_part(what, with_scaled, bert_dir, tmp_path, monkeypatch):
    write_course_files(tmp_path / "data", rows=20)
    args = multitask_classifier.get_args(flags(tmp_path, bert_dir, "--adapt", "scaled", "--save", what))
    score = multitask_classifier.train_multitask(args)
    saved = load_checkpoint(args.filepath)
    stored = [name for name in saved["model"] if name.startswith("bert.") and not name.endswith(("scale", "_ids"))]
    assert bool(stored) == (what == "all") and ("base" in saved) == (what == "trained")
    assert ("bert_config" in saved["model_config"]) == (what == "all")
    scores = multitask_classifier.test_multitask(args)
    assert multitask_classifier.overall_score(scores) == pytest.approx(score, abs=1e-9)
    again = multitask_classifier.get_args(flags(tmp_path, bert_dir, "--resume", "--epochs", "2"))
    assert again.save == what and again.adapt == ["scaled"]
    multitask_classifier.train_multitask(again)
    record = json.loads((tmp_path / "run" / "best.json").read_text())
    assert record["trained"] < 0.5 * record["parameters"] and record["peak_bytes"] > 2**20


def test_a_part_of_a_checkpoint_is_a_small_file_and_wants_its_own_weights(with_scaled, bert_dir, tmp_path):
    model = tiny_model(bert_dir, adapt=["scaled"])
    names = frozen_names(model)
    assert names == {name for name, _ in model.bert.named_parameters(prefix="bert") if not name.endswith("scale")}
    with torch.no_grad():
        model.bert.bert_layers[0].self_attention.query.scale.fill_(3.0)
    saved = weights_of(model, model.config, leave_out=True)
    fresh = tiny_model(bert_dir, adapt=["scaled"])
    load_weights(fresh, saved)
    for (name, ours), theirs in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert ours.equal(theirs), name
    with torch.no_grad():
        fresh.bert.word_embedding.weight[5, 0] += 1
    with pytest.raises(UserError, match="goes with other weights than those of"):
        load_weights(fresh, saved)
    del saved["model"]["bert.bert_layers.0.self_attention.query.scale"]
    with pytest.raises(RuntimeError, match="query.scale"):
        load_weights(model, saved)


def test_without_anything_frozen_all_is_saved(bert_dir):
    model = tiny_model(bert_dir)
    saved = weights_of(model, model.config, leave_out=True)
    assert set(saved) == {"model", "model_config"} and set(saved["model"]) == set(model.state_dict())


def test_the_classifier_trains_with_an_adapted_encoder(with_scaled, bert_dir, tmp_path):
    write_course_files(tmp_path / "data", rows=20)
    args = classifier.get_args(flags(tmp_path, bert_dir, "--dataset", "sst", "--option", "pretrain",
                                     "--adapt", "scaled", "--save", "trained"))
    classifier.train(args)
    scales = [value.item() for name, value in load_checkpoint(args.filepath)["model"].items() if "scale" in name]
    assert scales and all(scale != 1.0 for scale in scales)  # the frozen encoder's features are not kept then
    classifier.test(args)
    assert os.path.exists(args.dev_out)


def test_the_classifier_refuses_what_has_a_part_for_each_task(bert_dir):
    with pytest.raises(UserError, match="--adapt task-layers: what has a part for each task"):
        classifier.BertSentimentClassifier({"num_labels": 2, "hidden_dropout_prob": 0.1, "pretrained": bert_dir,
                                            "adapt": ["task-layers"]})


def test_what_a_technique_attaches(bert_dir):
    class Technique(EncoderTechnique):
        def of_weights(self, model):
            return 0

    model, technique = tiny_model(bert_dir), Technique()
    assert techniques_of(model, "of_weights") == []
    attach(model.bert, technique)
    assert techniques_of(model, "of_weights") == [technique] and techniques_of(model, "report") == []
    with pytest.raises(TypeError, match="Misspelt.of_weight: training calls no method of that name"):
        class Misspelt(EncoderTechnique):
            def of_weight(self, model):
                return 0


def test_freezing_leaves_what_techniques_have_added(bert_dir):
    bert = BertModel.from_pretrained(bert_dir)
    loaded = loaded_parameters(bert)
    bert.extra = nn.Linear(2, 2)
    freeze(bert)
    assert not any(p.requires_grad for p in loaded) and bert.extra.weight.requires_grad
    assert loaded_parameters(bert) is loaded


@pytest.mark.parametrize("word, L, expected", [
    ("all", 3, [0, 1, 2]), ("first-4", 12, [0, 1, 2, 3]), ("mid-4", 12, [4, 5, 6, 7]), ("last-4", 12, [8, 9, 10, 11]),
    ("mid-4", 6, [1, 2, 3, 4]), ("last-1", 1, [0]), ("last-4", 3, None), ("top", 3, None), ("first-0", 3, None)])
def test_chosen_layers(word, L, expected):
    bert = nn.Module()
    bert.bert_layers = [None] * L
    if expected is None:
        with pytest.raises(ValueError, match=f"layers={word}: choose all, first-N, mid-N .* with N from 1 to {L}"):
            chosen_layers(bert, word)
    else:
        assert chosen_layers(bert, word) == expected


def test_what_is_left_to_replace(bert_dir):
    bert = BertModel.from_pretrained(bert_dir)
    with pytest.raises(ValueError, match="nothing is left"):
        replace_modules(bert, lambda name, child: False, Scaled)
    config = read_config({"pretrained": bert_dir, "adapt": ["mixout:p=2"]})
    with pytest.raises(UserError, match="mixout:p=2"):
        load_encoder(config)


def trained(folder, bert_dir, *more):
    """Train, predict, and return the checkpoint."""
    args = multitask_classifier.get_args(flags(folder, bert_dir, *more))
    multitask_classifier.train_multitask(args)
    if args.per_task_epochs:
        multitask_classifier.fine_tune_each(args)
    multitask_classifier.test_multitask(args)
    return load_checkpoint(args.filepath)


@pytest.mark.parametrize("more", [
    ("--option", "pretrain"), ("--adapt", "freeze:layers=first-1"), ("--adapt", "scaled")])
def test_frozen_weights_that_are_not_the_pretrained_ones_are_saved(more, with_scaled, bert_dir, tmp_path):
    """What --init has brought is in no other file of the run."""
    write_course_files(tmp_path / "data", rows=20)
    first = trained(tmp_path, bert_dir, *(("--adapt", "scaled:start=2.0") if "scaled" in more else ()))
    (tmp_path / "run").rename(tmp_path / "first")
    saved = trained(tmp_path, bert_dir, *more, "--init", str(tmp_path / "first" / "best.pt"), "--save", "trained")
    name = "bert.bert_layers.0.interm_dense.weight"
    assert (name in saved["model"]) == ("scaled" not in more)  # there all but the scales were frozen from the start
    if name in saved["model"]:
        assert saved["model"][name].equal(first["model"][name])
    os.remove(tmp_path / "first" / "best.pt")  # going on takes the run's own files alone
    again = multitask_classifier.get_args(flags(tmp_path, bert_dir, "--resume", "--epochs", "2"))
    multitask_classifier.train_multitask(again)


def test_copies_for_each_task_of_what_was_frozen_for_a_while(bert_dir, tmp_path):
    write_course_files(tmp_path / "data", rows=20)
    saved = trained(tmp_path, bert_dir, "--adapt", "gradual-unfreezing", "--per_task_epochs", "1", "--save", "trained")
    record = json.loads((tmp_path / "run" / "best.json").read_text())
    assert record["trained"] == record["parameters"] and saved["model"]  # whatever was frozen when it was saved


def test_what_is_merged_is_no_checkpoint(bert_dir):
    model = tiny_model(bert_dir, adapt=["lora"])
    merge(model)
    with pytest.raises(UserError, match="merged into its weights: unmerge"):
        weights_of(model, model.config)
    unmerge(model)
    assert weights_of(model, model.config, leave_out=True)["base"]


def test_a_last_checkpoint_of_another_model_is_not_blamed_on_init(bert_dir, tmp_path):
    write_course_files(tmp_path / "data", rows=20)
    begun = trained(tmp_path, bert_dir)
    (tmp_path / "run").rename(tmp_path / "first")
    trained(tmp_path, bert_dir, "--init", str(tmp_path / "first" / "best.pt"))
    begun["model"]["sentiment_head.1.weight"] = torch.zeros(2, 3)
    torch.save(begun, tmp_path / "run" / "last.pt")
    with pytest.raises(UserError, match="run/last.pt does not hold what its own settings, or this run, need"):
        multitask_classifier.build_model(multitask_classifier.get_args(flags(tmp_path, bert_dir, "--resume")))


def test_init_of_another_model_names_what_differs(bert_dir, tmp_path):
    write_course_files(tmp_path / "data", rows=20)
    trained(tmp_path, bert_dir)
    args = multitask_classifier.get_args(flags(
        tmp_path, bert_dir, "--init", str(tmp_path / "run" / "best.pt"), "--adapt", "lora"))
    with pytest.raises(UserError, match=r"best.pt is of another model \(--adapt \[\] there, \['lora'\] here\): give"):
        multitask_classifier.build_model(args)


@pytest.mark.parametrize("script, option, adapt, lr", [
    (multitask_classifier, "finetune", None, 7e-6), (multitask_classifier, "finetune", "lora:rank=2", 1e-3),
    (multitask_classifier, "finetune", "mixout", 7e-6), (classifier, "finetune", "bitfit", 1e-3),
    (classifier, "pretrain", None, 1e-3), (classifier, "finetune", None, 1e-5),
    (multitask_classifier, "finetune", "diff", 5e-5), (classifier, "pretrain", "diff", 5e-5)])
def test_the_default_learning_rate_is_that_of_what_is_trained(script, option, adapt, lr):
    assert script.get_args(["--option", option, *(["--adapt", adapt] if adapt else [])]).lr == lr


@pytest.mark.parametrize("adapt, option, said", [
    (["mixout"], "pretrain", "has nothing to train"), (["mixout"], "finetune", ""), ([], "pretrain", ""),
    (["lora"], "pretrain", ""), (["last-linear"], "finetune", ""), (["task-layers", "last-linear"], "finetune", ""),
    (["mixout", "last-linear"], "finetune", "mixout last-linear: together, in this order, they leave nothing to train"),
    (["last-linear", "task-layers"], "finetune", "last-linear task-layers: together, in this order, they leave")])
def test_an_adaptation_without_anything_to_train_is_noted(adapt, option, said, bert_dir, capsys):
    model = tiny_model(bert_dir, option=option, adapt=adapt)
    note_model(SimpleNamespace(adapt=adapt, option=option, max_length=5, given={}), model)
    told = capsys.readouterr().out
    assert said in told and bool(said) == bool(told)


def test_dropout_of_a_frozen_encoder_is_noted(bert_dir, capsys):
    args = SimpleNamespace(adapt=[], option="pretrain", dropout={"attention": 0.2, "head": 0.3}, max_length=5,
                           given={"encoder_dropout_prob": 0.2})
    note_model(args, tiny_model(bert_dir, option="pretrain"))
    assert "without dropout: --dropout attention, --encoder_dropout_prob has no effect" in capsys.readouterr().out
    note_model(args, tiny_model(bert_dir, option="pretrain", adapt=["lora"]))
    assert capsys.readouterr().out == ""
