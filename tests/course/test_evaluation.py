"""Scores by hand, and prediction files: in file order, whole or not at all, with a record of their weights."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import evaluation
import tasks
from engine import distributed
from files import predictions
from multitask_classifier import MultitaskBERT, complete
from tests.helpers.fixtures_tiny import course_rows


@pytest.mark.parametrize("predicted, labels, acc, f1", [
    ([0, 1, 2, 2], [0, 1, 2, 2], 1.0, 1.0),
    ([0, 0, 1, 1], [0, 1, 1, 1], 0.75, (2 / 3 + 4 / 5) / 2),  # class 0: P 1/2, R 1; class 1: P 1, R 2/3
    ([0, 0, 0, 4], [0, 0, 1, 1], 0.5, (4 / 5 + 0 + 0) / 3),  # 4 occurs in no label and counts all the same
])
def test_sentiment_scores(predicted, labels, acc, f1):
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 5) * 3.0 - 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = evaluation.sentiment_scores(logits, labels, ["a"] * 4, ["i"] * 4)
    assert results[:2] == (pytest.approx(acc), pytest.approx(f1))
    assert results[2:] == (predicted, labels, ["a"] * 4, ["i"] * 4)
    assert [type(value) for value in results[:4]] == [float, float, list, list] and type(results[2][0]) is int


def test_pearson():
    x, y = [1.0, 2.0, 4.0], [0.0, 3.0, 3.0]  # deviations -4/3 -1/3 5/3 and -2 1 1
    r = tasks.pearson(x, y)
    assert r == pytest.approx((8 / 3 - 1 / 3 + 5 / 3) / math.sqrt((16 + 1 + 25) / 9 * 6)) and type(r) is float
    assert tasks.pearson([-10 * value for value in x], y) == pytest.approx(-r)


@pytest.mark.parametrize("predictions, labels", [
    ([2.5, 2.5, 2.5], [0.0, 1.0, 5.0]), ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]), ([1.0], [4.0])])
def test_undefined_correlation_is_zero_with_a_warning(predictions, labels):
    with pytest.warns(UserWarning, match="0.0") as caught:
        assert tasks.pearson(predictions, labels) == 0.0
    assert len(caught) == 1  # numpy has nothing to add


@pytest.mark.parametrize("scores, overall", [
    ({"sst": 0.5, "para": 0.8, "sts": 0.6}, (0.5 + 0.8 + 0.8) / 3),
    ({"sst": 0.5, "para": 0.8, "sts": -1.0}, (0.5 + 0.8 + 0.0) / 3),
    ({"sts": 0.6}, 0.8), ({"para": 0.7}, 0.7), ({"sst": 0.4, "sts": 0.0}, 0.45),
])
def test_overall_score(scores, overall):
    assert tasks.overall_score(scores) == pytest.approx(overall)


def test_classes_and_paraphrases_of_logits():
    assert tasks.TASKS["sst"].decide(torch.tensor([[0.1, 0.2, -1.0], [3.0, 1.0, 2.0]])) == [1, 0]
    assert tasks.TASKS["para"].decide(torch.tensor([-0.1, 0.1, 5.0, -5.0])) == [0.0, 1.0, 1.0, 0.0]


def test_collect_runs_without_dropout_or_gradient():
    model, seen = torch.nn.Dropout(0.9), []
    batches = [{"x": torch.ones(2, 3), "labels": torch.tensor([1, 0]), "sent_ids": ["a", "b"]},
               {"x": torch.ones(1, 3), "labels": torch.tensor([1]), "sent_ids": ["c"]}]
    logits, labels, sents, ids = evaluation.collect(batches, model, lambda batch: (
        seen.append(torch.is_grad_enabled()), model(batch["x"].bfloat16()))[1])
    assert seen == [False, False] and logits.equal(torch.ones(3, 3)) and logits.dtype == torch.float32
    assert (labels, sents, ids) == ([1, 0, 1], [], ["a", "b", "c"])


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_several_processes_score_each_batch_once_and_all_get_everything(world, monkeypatch):
    numbers = torch.arange(11.0)
    batches = [{"x": x, "labels": x.long(), "sents": [f"text {i}" for i in x], "sent_ids": [f"id{i}" for i in x]}
               for x in numbers.split(2)]
    alone = evaluation.collect(batches, torch.nn.Identity(), lambda batch: batch["x"])
    scored, sent, heard = [], [], []
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "gather", lambda value: sent.append(value) or heard or [value])
    for _ in range(2):  # the first round tells what each has to say, the second lets all of them hear it
        heard[:], sent[:] = sent, []
        for rank in range(world):
            monkeypatch.setattr(distributed, "rank", lambda: rank)
            together = evaluation.collect(batches, torch.nn.Identity(), lambda batch: (
                scored.append(batch["sent_ids"][0]), batch["x"])[1])
            assert not heard or (together[0].equal(numbers) and together[1:] == alone[1:])
    assert sorted(scored) == sorted(2 * [batch["sent_ids"][0] for batch in batches])


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "er" / "file.csv"
    predictions.write_predictions(path, "id \n", ["b", "a"], {"a": 1, "b": 0.5})
    assert path.read_bytes() == b"id \nb , 0.5 \na , 1 \n"
    with pytest.raises(KeyError):
        predictions.write_predictions(path, "other \n", ["a", "b", "missing"], {"a": 2, "b": 2})
    assert path.read_bytes() == b"id \nb , 0.5 \na , 1 \n"
    assert [p.name for p in path.parent.iterdir()] == ["file.csv"]
    with pytest.raises(KeyError):
        predictions.write_predictions(path.with_name("new.csv"), "id \n", ["missing"], {})
    assert [p.name for p in path.parent.iterdir()] == ["file.csv"]


def test_weights_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictions.record_weights("out/a.csv", "minilm")
    predictions.record_weights("out/b.csv", "bert-base-uncased")
    predictions.record_weights(tmp_path / "out" / "a.csv", "bert-base-uncased")
    predictions.record_weights("here.csv", "minilm")
    assert json.loads(Path("out/weights.json").read_text()) == {
        "a.csv": "bert-base-uncased", "b.csv": "bert-base-uncased"}
    assert json.loads(Path("weights.json").read_text()) == {"here.csv": "minilm"}


@pytest.fixture
def model(tiny_cache):
    torch.manual_seed(0)
    return MultitaskBERT(SimpleNamespace(hidden_dropout_prob=0.3, option="pretrain"))


def written(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.csv")}


def test_files_are_in_file_order_whatever_the_loaders(course_folder, model, monkeypatch):
    evaluation.test_model_multitask(complete(SimpleNamespace()), model, torch.device("cpu"))
    files = written("predictions")
    assert len(files) == 6
    for name, source in (("para-dev-output.csv", "quora-dev.csv"), ("sst-test-output.csv", "ids-sst-test-student.csv")):
        ids = [line.split(" , ")[0] for line in files[name].decode().splitlines()[1:]]
        assert ids == [row[0] for row in course_rows(source, 8)]

    def backwards(dataset, *size, **options):
        order = [[i] for i in reversed(range(len(dataset)))]
        return DataLoader(dataset, batch_sampler=order, collate_fn=dataset.collate_fn)

    monkeypatch.setattr(evaluation, "bucket_loader", backwards)  # a row at a time, and as the contract has it
    evaluation.test_model_multitask(complete(SimpleNamespace(predictions_dir="again")), model, torch.device("cpu"))
    again = written("again")
    assert again.keys() == files.keys()
    for name in files:
        if name.startswith("sts"):  # another batch, another rounding
            numbers = [[float(line.split(" , ")[1]) for line in text.decode().splitlines()[1:]]
                       for text in (files[name], again[name])]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-5) and len(set(numbers[0])) > 4
        else:
            assert again[name] == files[name]
    weights = json.loads(Path("predictions/weights.json").read_text())
    assert weights == dict.fromkeys(files, "bert-base-uncased")


@pytest.mark.parametrize("names", [["sts"], ["sst", "para"]])
def test_a_subset_of_the_tasks_touches_no_other_file(names, course_folder, model):
    for name in course_folder.glob("data/*.csv"):
        if not any(name.name.startswith({"sst": "ids-sst", "para": "quora", "sts": "sts"}[task]) for task in names):
            name.unlink()
    scores = evaluation.test_model_multitask(complete(SimpleNamespace(tasks=names)), model, torch.device("cpu"))
    assert list(scores) == names and all(type(score) is float for score in scores.values())
    assert sorted(written("predictions")) == sorted(
        f"{task}-{split}-output.csv" for task in names for split in ("dev", "test"))


def test_packed_pairs_score_as_the_contracts_do(course_folder, model):
    args, results = complete(SimpleNamespace()), {}
    files = {split: {task: getattr(args, f"{task}_{split}") for task in args.tasks} for split in ("dev", "test")}
    for pair_encoding in ("cross", "bi"):
        loaders = evaluation.multitask_loaders(files["dev"], "dev", args, pair_encoding=pair_encoding)
        assert ("token_ids" in next(iter(loaders["para"]))) == (pair_encoding == "cross")
        results[pair_encoding] = evaluation.model_eval_multitask(*loaders.values(), model, torch.device("cpu"))
    metrics = [result[::3] for result in results.values()]
    assert metrics[0] == pytest.approx(metrics[1]) and results["cross"][2::3] == results["bi"][2::3]  # ids
    assert results["cross"][4] == results["bi"][4] and results["cross"][7] == pytest.approx(results["bi"][7])
    loaders = evaluation.multitask_loaders(files["test"], "test", args, pair_encoding=args.pair_encoding)
    assert "token_ids" in next(iter(loaders["sts"]))
    assert "token_ids_1" in next(iter(evaluation.multitask_loaders(files["test"], "test", args)["sts"]))


def test_a_model_of_the_courses_is_given_the_contracts_batches(course_folder, model):
    theirs = torch.nn.Module()
    theirs.predict_sentiment = model.eval().predict_sentiment
    theirs.predict_paraphrase, theirs.predict_similarity = model.predict_paraphrase, model.predict_similarity
    results = evaluation.test_model_multitask(complete(SimpleNamespace()), theirs, torch.device("cpu"))
    files = written("predictions")
    assert len(files) == 6 and results == pytest.approx(
        evaluation.test_model_multitask(complete(SimpleNamespace()), model, torch.device("cpu")))


def test_no_loader_no_result(model):
    assert evaluation.model_eval_multitask(None, None, None, model, "cpu") == (None, [], []) * 3
    assert evaluation.model_eval_test_multitask(None, None, None, model, "cpu") == ([], []) * 3


def test_the_2023_edition_returns_paraphrase_first(course_folder, model, monkeypatch):
    loaders = evaluation.multitask_loaders({task: getattr(complete({}), f"{task}_dev") for task in tasks.COURSE_TASKS},
                                           "dev", SimpleNamespace())
    given = [loaders[task] for task in tasks.COURSE_TASKS]
    sst, para, sts = (evaluation.model_eval_multitask(*given, model, "cpu")[i : i + 3] for i in (0, 3, 6))
    monkeypatch.setenv("MINBERT_EDITION", "2023")
    assert evaluation.model_eval_multitask(*given, model, "cpu") == (*para, *sst, *sts)
    assert evaluation.model_eval_test_multitask(*given, model, "cpu") == (*para[1:], *sst[1:], *sts[1:])


def test_a_students_subclass_that_overrides_a_method_of_the_contract_is_heard(course_folder, model):
    class Own(type(model)):
        def predict_sentiment(self, input_ids, attention_mask):
            return torch.eye(5)[3].expand(len(input_ids), -1)

    model.__class__ = Own
    loaders = evaluation.multitask_loaders({"sst": complete({}).sst_dev}, "dev", SimpleNamespace())
    assert set(evaluation.evaluate_tasks(loaders, model, "cpu")["sst"].predictions) == {3}
