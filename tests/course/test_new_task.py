"""A task is one entry of the table: two toy ones are trained, scored, predicted, resumed, tuned apart and submitted.

Not a line of the project knows them. One is of single texts, binary, scored by Matthews correlation, as CoLA in GLUE;
one is of pairs in three classes, as MNLI.
"""

import json
import os
import signal
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from sklearn.metrics import matthews_corrcoef

import multitask_classifier
import prepare_submit
from engine import loop
from files.errors import Interrupted, UserError
from files.tables import FileFormat, lower_strip, preprocess_string
from scripts import check_data
from tasks import TASKS, Task, overall_score
from tests.helpers.fixtures_tiny import WORDS


def matthews(predictions, labels):
    return float(matthews_corrcoef(labels, predictions))


TOY = Task("toy", FileFormat(("text",), lower_strip, "acceptable", int, 1, "Toy"), "binary", "toy-{}.csv",
           "id \t Predicted_Acceptable \n", "bce", metric=matthews, overall=lambda r: (r + 1) / 2)
TRIO = Task("trio", FileFormat(("premise", "hypothesis"), preprocess_string, "relation", int, 2, "Trio"), "classes",
            "trio-{}.csv", "id \t Predicted_Relation \n", "ce")
FILES = [f"{task}-{split}-output.csv" for task in ("toy", "trio") for split in ("dev", "test")]


def write_task(folder, task, rows=24):
    """Write the three files of a task: rows of words, whose label is told by the first one."""
    words, form = WORDS.split(), task.form
    for split in ("train", "dev", "test"):
        columns = ["id", *form.texts, *([form.label] if split != "test" else [])]
        lines = ["\t".join(["", *columns])]
        for i in range(rows):
            label = i % (form.maximum + 1)
            texts = [" ".join([words[label], *(words[(i * 5 + 3 * j) % len(words)] for j in range(2 + i % 4))])
                     for _ in form.texts]
            lines.append("\t".join([str(i), f"{split}{i}", *texts, *([str(label)] if split != "test" else [])]))
        Path(task.data_file(folder, split)).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def run(course_folder, monkeypatch, capsys):
    """Register both tasks, write their files, and return a function that runs the script with these flags."""
    for task in (TOY, TRIO):
        monkeypatch.setitem(TASKS, task.name, task)
        write_task("data", task)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["multitask_classifier.py", *flags])
        multitask_classifier.main()
        return capsys.readouterr().out
    return run


QUICK = ("--tasks", "toy", "sst", "trio", "--batch_size", "8", "--lr", "1e-3", "--precision", "fp32", "--run_dir",
         "run")


def predictions(name):
    """Return (header, {id: text}) of a prediction file."""
    header, *rows = Path("predictions", name).read_text(encoding="utf-8").split("\n")
    return header + "\n", dict(row.removesuffix(" ").split(" , ") for row in rows if row)


def metrics():
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def test_it_is_trained_scored_and_predicted(run):
    said = run(*QUICK, "--epochs", "6", "--hidden_dropout_prob", "0")
    table = {line.split()[0]: float(line.split()[1]) for line in said.split("dev score\n")[1].splitlines()}
    assert {"sst", "toy", "trio"} <= set(table)

    header, toy = predictions("toy-dev-output.csv")
    assert header == TOY.header and list(toy) == [f"dev{i}" for i in range(24)] and set(toy.values()) <= {"0.0", "1.0"}
    score = matthews([float(toy[f"dev{i}"]) for i in range(24)], [i % 2 for i in range(24)])
    assert table["toy"] == pytest.approx(score, abs=1e-3)
    header, trio = predictions("trio-dev-output.csv")
    assert header == TRIO.header and set(trio.values()) <= {"0", "1", "2"}
    assert table["trio"] == pytest.approx(sum(int(trio[f"dev{i}"]) == i % 3 for i in range(24)) / 24, abs=1e-3)
    assert table["toy"] > 0.3 and table["trio"] > 0.5  # the first word tells: it has learned

    scored = [line for line in metrics() if line["kind"] == "score"]
    best = max(scored, key=lambda line: line["score"])
    assert set(best["dev"]) == {"sst", "toy", "trio"} and best["score"] == pytest.approx(overall_score(best["dev"]))
    assert best["dev"]["toy"] == pytest.approx(score)
    heads = {name.split(".")[0] for name in torch.load("run/best.pt", weights_only=True)["model"]}
    assert heads >= {"toy_head", "trio_head", "sentiment_head", "paraphrase_head", "similarity_head"}


def test_a_resumed_run_ends_as_one_that_went_through(run, monkeypatch):
    step = loop.Training.step

    def stopping(training):
        step(training)
        if training.standing.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    run(*QUICK, "--epochs", "2")
    whole, files = torch.load("run/last.pt", weights_only=True), {name: predictions(name) for name in FILES}
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped at step 5"):
        patch.setattr(loop.Training, "step", stopping)
        run(*QUICK, "--epochs", "2", "--run_dir", "again")
    run("--resume", "--run_dir", "again")
    resumed = torch.load("again/last.pt", weights_only=True)
    assert all(resumed["model"][name].equal(tensor) for name, tensor in whole["model"].items())
    assert {name: predictions(name) for name in FILES} == files
    # The checkpoint knows its tasks.
    args = multitask_classifier.get_args(["--filepath", "run/best.pt", "--predictions_dir", "other"])
    assert set(multitask_classifier.test_multitask(args)) == {"sst", "toy", "trio"}


@pytest.mark.parametrize("flags", [
    ["--pair_encoding", "trio=bi", "--pooling", "toy=mean", "--heads", "trio=mlp:hidden=2"],
    ["--adapt", "pals"], ["--penalty", "rdrop", "--schedule", "round-robin"],
    ["--option", "pretrain", "--loss", "toy=bce", "toy=focal", "--task_weights", "fixed:toy=2,trio=0.5"],
    ["--pair_order", "both", "--task_batch_size", "toy=4", "--train_rows", "50%"],
    ["--per_task_epochs", "1", "--schedule", "round-robin", "--gradient", "pcgrad"],
], ids=lambda flags: flags[0])
def test_the_techniques_take_it(flags, run):
    run(*QUICK, *flags, "--max_steps", "4")
    assert all(len(predictions(name)[1]) == 24 for name in FILES)


def test_layers_of_its_own(run):
    run(*QUICK, "--adapt", "task-layers", "--max_steps", "4")
    assert any("by_task.toy" in name for name in torch.load("run/best.pt", weights_only=True)["model"])


def test_files_and_flags_of_its_own(run, capsys):
    for split in ("train", "dev", "test"):
        Path(TOY.data_file("data", split)).rename(f"{split}.csv")
    run("--tasks", "toy", "--toy_train", "train.csv", "--toy_dev", "dev.csv", "--toy_test", "test.csv", "--toy_dev_out",
        "a.csv", "--toy_test_out", "b.csv", "--max_steps", "2")
    assert Path("a.csv").read_text().startswith(TOY.header) and Path("b.csv").exists()
    check_data.main(["dev.csv", "test.csv"])
    said = capsys.readouterr().out
    assert "kind      Toy, with labels" in said and "24 of the 24 rows of dev.csv stand in test.csv" in said
    with pytest.raises(UserError, match="file of Trio, not of Toy: were two paths swapped"):
        run("--tasks", "toy", "--toy_train", "data/trio-train.csv", "--toy_dev", "dev.csv", "--toy_test", "test.csv")


def test_it_is_submitted(run):
    run("--tasks", "sst", "para", "sts", "toy", "trio", "--max_steps", "2")
    prepare_submit.main(["--part", "2", "--out", "a.zip"])
    names = zipfile.ZipFile("a.zip").namelist()
    assert {f"predictions/{name}" for name in FILES} <= set(names)
    assert len([name for name in names if name.startswith("predictions/")]) == 6 + len(FILES)
    path = Path("predictions/toy-dev-output.csv")
    path.write_text(path.read_text().replace("1.0", "0.5").replace("0.0", "0.5"))
    with pytest.raises(UserError, match="toy-dev-output.csv: 24 predictions other than 0.0 or 1.0"):
        prepare_submit.main(["--part", "2", "--out", "b.zip"])


@pytest.mark.parametrize("flags, words", [
    ("--pair_encoding bi --pair_score cosine",
     "--pair_score cosine: a cosine is one number, and trio has 3 classes; name another score for it, such as "
     "trio=concat"),
    ("--pair_encoding trio=bi --pair_score trio=cosine", "--pair_score trio=cosine: a cosine is one number"),
    ("--loss trio=mse", "--loss trio=mse: mse is a loss for sts"),
    ("--loss trio=mnrl", "--loss trio=mnrl: mnrl is a loss for para and sts"),
    ("--loss trio=simcse", "--loss trio=simcse trains no classifier: add one that does, such as trio=ce"),
    ("--loss toy=simcse", "--loss toy=simcse trains no classifier: add one that does, such as toy=bce"),
    ("--heads trio=mlp:hidden=9", "hidden must be from 0 to 4"),
    ("--tasks sst --trio_train a.csv", "--trio_train is for trio, which is not among --tasks sst")])
def test_what_it_cannot_have_is_refused_in_one_line(flags, words, run):
    with pytest.raises(UserError) as refusal:
        run(*QUICK, *flags.split())
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_cosine_is_for_the_pairs_that_have_one(run):
    flags = "--pair_encoding bi --pair_score cosine trio=product".split()
    args = multitask_classifier.get_args(["--tasks", "sts", "trio", *flags])
    assert (args.pair_score["sts"], args.pair_score["trio"]) == ("cosine", "product")


def test_cfimdb_beside_sst(run):
    said = run("--tasks", "sst", "cfimdb", "--max_steps", "2")
    table = [line.split()[0] for line in said.split("dev score\n")[1].splitlines()]
    assert table[:2] == ["sst", "cfimdb"]
    header, found = predictions("cfimdb-test-output.csv")
    assert header == TASKS["cfimdb"].header and len(found) == 8 and set(found.values()) <= {"0", "1"}


def test_a_task_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="kind is 'ranks'; choose one of classes, binary, real"):
        Task("toy", TOY.form, "ranks", "toy-{}.csv", "id \n", "ce")
    with pytest.raises(ValueError, match="the name stands in flags and options"):
        Task("my-toy", TOY.form, "binary", "toy-{}.csv", "id \n", "bce")
