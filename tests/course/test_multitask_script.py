"""multitask_classifier.py from its command line to its files, on tiny data with a tiny BERT."""

import json
import sys
from pathlib import Path

import pytest
import torch

import multitask_classifier
from bert import BertModel
from evaluation import Result
from files.errors import UserError
from multitask_classifier import MultitaskBERT, complete, get_args, get_parser, training_loaders
from tests.helpers.fixtures_tiny import tiny_bert_dir

ROOT = Path(multitask_classifier.__file__).parent
CSV = "{}-{}-output.csv"


@pytest.fixture
def run(course_folder, monkeypatch, capsys):
    """Return a function that runs the script with these flags for two steps and gives what it printed."""
    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["multitask_classifier.py", "--max_steps", "2", *flags])
        multitask_classifier.main()
        return capsys.readouterr().out
    return run


def args_of(*flags):
    return complete(get_parser().given(flags))


def written():
    return sorted(path.name for path in Path("predictions").glob("*"))


@pytest.mark.parametrize("tasks", [["sst"], ["para"], ["sts"], ["sts", "sst"]])
def test_a_subset_reads_and_writes_only_its_files(tasks, run, course_folder):
    stems = {"sst": "ids-sst", "para": "quora", "sts": "sts"}
    for path in course_folder.glob("data/*"):
        if not path.name.startswith(tuple(stems[task] for task in tasks)):
            path.unlink()
    said = run("--tasks", *tasks)
    assert written() == sorted([CSV.format(task, split) for task in tasks for split in ("dev", "test")]
                               + ["weights.json"])
    table = said.split("dev score\n")[1].splitlines()
    assert sorted(line.split()[0] for line in table) == sorted(tasks)  # and no overall score
    # The checkpoint knows its tasks: none need be repeated.
    assert sorted(multitask_classifier.test_multitask(args_of())) == sorted(tasks)


@pytest.mark.parametrize("flags", [
    ["--pair_encoding", "bi"], ["--pair_encoding", "bi", "--pair_score", "cosine", "--option", "pretrain"],
    ["--pooling", "mean", "sst=pooler", "--fine-tune-mode", "last-linear-layer"],
])
def test_the_checkpoint_holds_all_that_prediction_needs(flags, run, course_folder):
    run(*flags, "--max_length", "12", "--filepath", "model.pt")
    files = {path.name: path.read_bytes() for path in Path("predictions").glob("*.csv")}
    assert len(files) == 6
    multitask_classifier.test_multitask(args_of("--filepath", "model.pt", "--predictions_dir", "again"))
    assert files == {path.name: path.read_bytes() for path in Path("again").glob("*.csv")}

    saved = torch.load("model.pt", weights_only=True)
    config, args = saved["model_config"], args_of(*flags)
    assert (config["pooling"], config["pair_encoding"], config["pair_score"], config["max_length"]) == (
        args.pooling, args.pair_encoding, args.pair_score, 12)
    model = MultitaskBERT(config)
    model.load_state_dict(saved["model"])
    assert vars(model.config)["pooling"] == args.pooling and model.max_length == 12
    frozen = "bi" not in flags or "pretrain" in flags
    same = [model.bert.state_dict()[name].equal(tensor)
            for name, tensor in BertModel.from_pretrained("bert-base-uncased").state_dict().items()]
    assert all(same) == frozen and args.option == ("pretrain" if frozen else "finetune")
    assert json.loads(Path("model.json").read_text())["args"]["pooling"] == args.pooling


def test_without_predictions_no_test_file_is_read(run):
    tests = {path: path.read_bytes() for path in Path("data").glob("*test*")}
    for path in tests:
        path.unlink()
    assert "dev score\n" not in run("--skip_predictions", "--run_dir", "run")
    assert not written() and Path("run/best.pt").exists()
    for path, data in tests.items():
        path.write_bytes(data)
    said = run("--resume", "--run_dir", "run")  # of the run that is at its end, without the flag
    assert "dev score\n" in said and "skip_predictions" not in said and len(written()) == 7


def test_how_to_predict_is_a_matter_of_the_command_line(run):
    run("--run_dir", "run")
    files = {path: path.read_bytes() for path in sorted(Path("predictions").glob("*.csv"))}
    run("--resume", "--run_dir", "run", "--pair_order", "both")
    changed = [path.name for path, data in files.items() if path.read_bytes() != data]
    assert [name for name in changed if name.startswith("sts")] == [CSV.format("sts", "dev"), CSV.format("sts", "test")]
    assert not [name for name in changed if name.startswith("sst")]


def test_train_rows_and_truncation_reach_the_batches(course_folder):
    loaders = training_loaders(args_of("--train_rows", "3"))
    assert {task: len(loader.dataset) for task, loader in loaders.items()} == {"sst": 3, "para": 3, "sts": 3}
    ids = [batch["sent_ids"] for batch in loaders["sst"]]
    assert ids == [batch["sent_ids"] for batch in training_loaders(args_of("--train_rows", "3"))["sst"]]

    tokens = {}
    for side in ("head", "tail", "head+tail"):
        data = training_loaders(args_of("--max_length", "6", "--truncation", side, "--tasks", "sst"))["sst"].dataset
        tokens[side] = [row[1:-1] for row in data.collate_fn(data.dataset)["token_ids"].tolist()]
        whole = [data.tokenizer.encode(row[0])[1:-1] for row in data.dataset]
    assert min(map(len, whole)) == 4 < max(map(len, whole))
    assert tokens == {"head": [ids[:4] for ids in whole], "tail": [ids[-4:] for ids in whole],
                      "head+tail": [ids[:1] + ids[-3:] for ids in whole]}


def test_the_printed_table_and_note(run, tmp_path):
    said = run()
    table = {line.split()[0]: float(line.split()[1]) for line in said.split("dev score\n")[1].splitlines()}
    assert table["overall"] == pytest.approx((table["sst"] + table["para"] + (table["sts"] + 1) / 2) / 3, abs=2e-3)
    assert "note" not in said
    other = tiny_bert_dir(tmp_path / "other", hidden_size=24, num_attention_heads=2)
    said = run("--pretrained", str(other))
    assert "admit only bert-base-uncased for grading" in said and str(other) in said
    weights = json.loads(Path("predictions/weights.json").read_text())
    assert sorted(weights) == [name for name in written() if name.endswith(".csv")] and set(weights.values()) == {
        str(other)}


def test_the_best_epoch_by_overall_score_is_predicted_with(run, monkeypatch):
    scores = iter([(0.5, 0.5, 0.0), (0.6, 0.5, 0.2), (0.5, 0.6, 0.1)])  # overall .5, .567, .55
    weights, seen = [], (value for score in [(0.0, 0.0, 0.0)] * 3 for value in score)

    def evaluate(loaders, model, device):
        if isinstance(loaders["sst"], list):  # the sample of training rows
            return {task: Result(next(seen), [], [], [], []) for task in loaders}
        weights.append(model.sentiment_head[1].weight.detach().clone())
        return {task: Result(score, [], [], [], []) for task, score in zip(loaders, next(scores), strict=True)}

    monkeypatch.setattr(multitask_classifier, "evaluate_tasks", evaluate)
    run("--epochs", "3", "--max_steps", "9", "--lr", "1e-3", "--filepath", "best.pt")
    saved = torch.load("best.pt", weights_only=True)["model"]["sentiment_head.1.weight"]
    assert [saved.equal(weight) for weight in weights] == [False, True, False]


@pytest.mark.parametrize("flags", [["--pooling", "sum"], ["--pooling", "mean", "mnli=mean"]])
def test_wrong_pooling(flags):
    with pytest.raises(UserError, match=f"pooling '?{flags[-1]}"):
        get_args(flags)


def test_demo_stands_for_flags_that_explicit_ones_override(monkeypatch):
    args = get_args(["--demo", "--epochs", "1", "--predictions_dir", "elsewhere"])
    assert (args.pretrained, args.epochs, args.pooling["sts"]) == ("minilm", 1, "mean")
    assert args.sst_train == str(ROOT / "data" / "sample" / "ids-sst-train.csv")
    assert args.sts_test_out == str(Path("elsewhere") / "sts-test-output.csv")
    args = get_args([f"@{ROOT}/recipes/course.args", "--demo"])
    assert (args.pretrained, args.option, args.batch_size) == ("minilm", "pretrain", 8)
    assert args.para_dev_out == str(Path("predictions") / "demo" / "para-dev-output.csv")


@pytest.mark.parametrize("flags", [["--epochs", "0"], ["--train_rows", "0"]])
def test_a_run_that_trains_nothing_says_so(flags, run):
    run()
    with pytest.raises((UserError, SystemExit)):
        run(*flags)


def test_a_missing_test_file_is_noticed_before_training(run, monkeypatch):
    Path("data/quora-test-student.csv").unlink()
    monkeypatch.setattr(multitask_classifier, "fit", lambda *args: pytest.fail("trained first"))
    with pytest.raises(UserError, match="quora-test-student.csv"):
        run()
