"""Every recipe runs on the sample data, two steps from the command line, and both scripts explain themselves."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.args"))
SOURCES = {
    "sst-dev-output.csv": "ids-sst-dev.csv", "sst-test-output.csv": "ids-sst-test-student.csv",
    "para-dev-output.csv": "quora-dev.csv", "para-test-output.csv": "quora-test-student.csv",
    "sts-dev-output.csv": "sts-dev.csv", "sts-test-output.csv": "sts-test-student.csv",
}


def run(script, *flags, cwd):
    """Run one of the scripts from `cwd` as a user does, without a network; return what it printed."""
    environment = {**os.environ, "MINBERT_CACHE": str(cwd / "cache"), "MINBERT_HUB": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, ROOT / script, *flags], cwd=cwd, env=environment, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, tmp_path):
    said = run("multitask_classifier.py", f"@{ROOT / 'recipes' / name}", "--demo", "--max_steps", "2", cwd=tmp_path)

    folder = tmp_path / "predictions" / "demo"
    assert sorted(path.name for path in folder.glob("*.csv")) == sorted(SOURCES)
    for output, source in SOURCES.items():
        with open(ROOT / "data" / "sample" / source, encoding="utf-8") as file:
            ids = [row["id"] for row in csv.DictReader(file, delimiter="\t")]
        lines = (folder / output).read_text(encoding="utf-8").splitlines()
        assert [line.split(" , ")[0] for line in lines[1:]] == ids
        assert all(0 <= float(line.split(" , ")[1]) <= 4 for line in lines[1:] if output.startswith(("sst", "para")))

    table = dict(re.findall(r"^(sst|para|sts|overall) +(-?\d\.\d{3})$", said, re.M))
    assert sorted(table) == ["overall", "para", "sst", "sts"]
    assert (tmp_path / "runs" / "demo" / "best.pt").exists()
    assert said.count("epoch 1: train loss") == 1 and "epoch 2:" not in said  # two steps and no more


def test_the_issues_recipes_are_there():
    assert {"course.args", "minilm.args"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_is_and_holds_a_flag_a_line(name):
    lines = (ROOT / "recipes" / name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith(".")
    assert all(re.fullmatch(r"#.*|--\w+( [\w.=:-]+)*|", line) for line in lines)


@pytest.fixture(scope="module", params=["multitask_classifier.py", "classifier.py"])
def help_text(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("help")
    text = " ".join(run(request.param, "--help", cwd=folder).split())
    assert not list(folder.iterdir())
    return text


def test_help_names_the_flags(help_text):
    for flag in ("--seed", "--epochs", "--option {pretrain,finetune}", "--use_gpu", "--batch_size",
                 "--hidden_dropout_prob", "--lr", "--pretrained"):
        assert flag in help_text


def test_help_names_no_default_that_is_none(help_text):
    assert "(default: None)" not in help_text
