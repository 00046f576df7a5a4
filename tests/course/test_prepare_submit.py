"""The submission zip: what it packs, and every mistake that it refuses."""

import json
import zipfile

import pytest

import prepare_submit
from files.errors import UserError, run_script

IDS = ["a1", "b2", "c3"]
HEADERS = {
    "sst": b"id \t Predicted_Sentiment \n",
    "cfimdb": b"id \t Predicted_Sentiment \n",
    "para": b"id \t Predicted_Is_Paraphrase \n",
    "sts": b"id \t Predicted_Similiary \n",
}
GOOD = {"sst": ["0", "4", "2"], "cfimdb": ["0", "1", "1"], "para": ["0.0", "1.0", "1.0"],
        "sts": ["-0.25", "1e-05", "3.0"]}
DATA = {"sst": "ids-sst", "cfimdb": "ids-cfimdb", "para": "quora", "sts": "sts"}
PART1 = [f"{option}-{task}-{split}-out.csv" for option in ("pretrain", "finetune") for task in ("sst", "cfimdb")
         for split in ("dev", "test")]
PART2 = [f"{task}-{split}-output.csv" for task in ("sst", "para", "sts") for split in ("dev", "test")]
CODE = ["base_bert.py", "bert.py", "classifier.py", "config.py", "datasets.py", "engine/__init__.py", "engine/loop.py",
        "engine/step.py", "evaluation.py", "extensions/__init__.py", "extensions/deep/part.py", "extensions/lora.py",
        "multitask_classifier.py", "optimizer.py", "scripts/__init__.py", "scripts/download_data.py", "tokenizer.py",
        "utils.py"]
# What some of them import.
IMPORTS = {
    "classifier.py": "import os\nimport torch\nfrom bert import BertModel\nfrom engine import loop\n",
    "multitask_classifier.py": "import bert\nimport extensions.lora\nfrom extensions import LORA\n"
                               "from evaluation import predict\n",
    "bert.py": "from base_bert import *\nfrom config import BertConfig\n",
    "engine/loop.py": "import engine.step as step\n",
    "extensions/__init__.py": "LORA = {}\n",
    "evaluation.py": "def draw():\n    import seldom_installed\n    import tokenizer\n",
}
NOT_CODE = ["conftest.py", "README.md", "tests/test_x.py", "tests/__init__.py", "benchmarks/__init__.py",
            "extensions/words.txt", ".venv/lib/torch/__init__.py", "finetune-sst.pt", "notebooks/draft.py"]


def rows(values):
    return list(zip(IDS, values, strict=True))


def write(path, task, content=None):
    content = rows(GOOD[task]) if content is None else content
    path.write_bytes(HEADERS[task] + "".join(f"{i} , {value} \n" for i, value in content).encode())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A complete submission in the current folder, and a small project to pack in place of this one."""
    monkeypatch.chdir(tmp_path)
    for name in CODE + NOT_CODE:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(f"# {name}\n{IMPORTS.get(name, '')}")
    monkeypatch.setattr(prepare_submit, "ROOT", tmp_path / "project")
    (tmp_path / "data").mkdir()
    (tmp_path / "predictions").mkdir()
    labels = {"sst": "sentence\tsentiment", "cfimdb": "sentence\tsentiment",
              "para": "sentence1\tsentence2\tis_duplicate", "sts": "sentence1\tsentence2\tsimilarity"}
    for task, columns in labels.items():
        columns, texts = f"\tid\t{columns}", "\tx" * (columns.count("\t"))
        dev = [columns] + [f"0\t {i.upper()}{texts}\t1.0" for i in IDS]
        if task == "para":
            dev.append(f"0\tunlabelled{texts}\t")  # as two rows of the course's file
        (tmp_path / "data" / f"{DATA[task]}-dev.csv").write_text("\n".join(dev) + "\n")
        test = [columns.rpartition("\t")[0]] + [f"0\t{i}{texts}" for i in IDS]
        (tmp_path / "data" / f"{DATA[task]}-test-student.csv").write_text("\n".join(test) + "\n")
    for name in PART1:
        write(tmp_path / "predictions" / name, name.split("-")[1])
    for name in PART2:
        write(tmp_path / "predictions" / name, name.split("-")[0])
    return tmp_path


def refusal(*argv):
    """Return the message with which prepare_submit refuses, exit code and absence of a zip checked."""
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: prepare_submit.main(argv))
    assert stop.value.code == 2
    with pytest.raises(UserError) as error:
        prepare_submit.main(argv)
    return str(error.value)


@pytest.mark.parametrize("part, expected", [("1", PART1), ("2", PART2), ("all", PART1 + PART2)])
def test_the_zip_holds_code_and_predictions_and_nothing_else(folder, part, expected, capsys):
    for name in set(PART1 + PART2) - set(expected):
        (folder / "predictions" / name).unlink()  # the other part's files are not needed
    (folder / "predictions" / "notes.csv").write_text("stale")
    prepare_submit.main(["--part", part])
    with zipfile.ZipFile(folder / "cs224n_default_final_project_submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(CODE + [f"predictions/{name}" for name in expected])
        for name in expected:
            assert archive.read(f"predictions/{name}") == (folder / "predictions" / name).read_bytes()
        assert archive.read("extensions/lora.py") == b"# extensions/lora.py\n"
    assert f"{len(CODE)} code files, {len(expected)} prediction files" in capsys.readouterr().out


def test_equal_contents_give_equal_bytes(folder):
    prepare_submit.main(["--out", "one/a.zip"])
    for name in CODE:
        (folder / "project" / name).touch()
    prepare_submit.main(["--out", "b.zip"])
    assert (folder / "one" / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()


def test_any_row_order_and_the_spring_2024_prefixes_are_accepted(folder):
    predictions = folder / "predictions"
    write(predictions / "sts-dev-output.csv", "sts", rows(GOOD["sts"])[::-1])
    (predictions / "pretrain-sst-dev-out.csv").rename(predictions / "last-linear-layer-sst-dev-out.csv")
    (predictions / "finetune-cfimdb-test-out.csv").rename(predictions / "full-model-cfimdb-test-out.csv")
    prepare_submit.main([])
    names = zipfile.ZipFile(folder / prepare_submit.ZIP_NAME).namelist()
    assert {"predictions/last-linear-layer-sst-dev-out.csv", "predictions/full-model-cfimdb-test-out.csv"} <= set(names)


@pytest.mark.parametrize("name, task, content, complaint", [
    ("sst-dev-output.csv", "sst", b"id,Predicted_Sentiment\n", "header must be"),
    ("sst-dev-output.csv", "sst", [("a1", "1"), ("c3", "1")], "1 ids missing: b2"),
    ("sst-test-output.csv", "sst", [*rows("123"), ("zz", "1")], "1 ids that the data file does not have: zz"),
    ("para-dev-output.csv", "para", [*rows(GOOD["para"]), ("unlabelled", "1.0")], "does not have: unlabelled"),
    ("sst-dev-output.csv", "sst", [*rows("123"), ("a1", "1")], "1 ids repeated: a1"),
    ("sst-dev-output.csv", "sst", rows("125"), "other than 0, 1, 2, 3 or 4: line 4 '5'"),
    ("sst-dev-output.csv", "sst", rows(["1", "2.0", "3"]), "line 3 '2.0'"),
    ("finetune-cfimdb-dev-out.csv", "cfimdb", rows("012"), "other than 0 or 1: line 4 '2'"),
    ("para-dev-output.csv", "para", rows(["1", "0.0", "0.5"]), "2 predictions other than 0.0 or 1.0"),
    ("sts-dev-output.csv", "sts", rows(["nan", "inf", "1e999"]), "3 predictions other than a finite number"),
    ("sts-dev-output.csv", "sts", rows(["1_0", "tensor(1.)", "0.5"]), "2 predictions other than a finite number"),
    ("sts-dev-output.csv", "sts", HEADERS["sts"] + b"a1 , 0.5 \r\nb2,0.5\nc3 , 0.5 \n", "2 rows not of the form"),
    ("sts-dev-output.csv", "sts", HEADERS["sts"] + b"a1 , 0.5 \nb2 , 0", "cut off"),
    ("sts-dev-output.csv", "sts", b"", "header must be"),
    ("sts-dev-output.csv", "sts", b"\xff\xfe", "header must be"),
])
def test_a_bad_prediction_file_is_refused(folder, name, task, content, complaint):
    path = folder / "predictions" / name
    path.write_bytes(content) if isinstance(content, bytes) else write(path, task, content)
    message = refusal()
    assert complaint in message and name in message
    assert not (folder / prepare_submit.ZIP_NAME).exists()


def test_all_mistakes_come_in_one_list(folder):
    (folder / "predictions" / "sst-dev-output.csv").unlink()
    (folder / "predictions" / "pretrain-cfimdb-test-out.csv").unlink()
    write(folder / "predictions" / "sts-dev-output.csv", "sts", [("a1", "nan")])
    (folder / "predictions" / "full-model-sst-dev-out.csv").write_bytes(b"")
    (folder / "data" / "quora-test-student.csv").unlink()
    (folder / "project" / "bert.py").unlink()
    message = refusal()
    for complaint in ("bert.py: missing", "sst-dev-output.csv: missing; multitask_classifier.py writes it",
                      "pretrain-cfimdb-test-out.csv: missing; classifier.py --option pretrain writes it",
                      "2 ids missing: b2, c3", "a finite number: line 2 'nan'", "one prediction file under two names",
                      "quora-test-student.csv", "python -m scripts.download_data"):
        assert complaint in message
    assert "sts-test-output.csv" not in message  # nothing is wrong with that one


def test_predictions_of_other_weights_are_packed_with_a_warning(folder, capsys):
    record = {"sst-dev-output.csv": "minilm", "sts-dev-output.csv": "bert-base-uncased", "old-output.csv": "minilm"}
    (folder / "predictions" / "weights.json").write_text(json.dumps(record))
    prepare_submit.main(["--part", "2"])
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "sst-dev-output.csv" in warnings[0] and "'minilm'" in warnings[0] and "bert-base-uncased" in warnings[0]
    assert "predictions/weights.json" not in zipfile.ZipFile(folder / prepare_submit.ZIP_NAME).namelist()


@pytest.mark.parametrize("name", ["classifier.py", "multitask_classifier.py", "bert.py", "base_bert.py", "config.py",
                                  "engine/loop.py", "engine/step.py", "extensions/lora.py", "evaluation.py"])
def test_a_module_that_a_script_needs_is_missed(name, folder):
    (folder / "project" / name).unlink()
    assert f"\n  - {name}: missing from " in refusal()


@pytest.mark.parametrize("name", ["optimizer.py", "scripts/download_data.py", "extensions/deep/part.py"])
def test_a_module_that_no_script_imports_is_not_missed(name, folder):
    (folder / "project" / name).unlink()
    prepare_submit.main([])


def test_a_package_of_no_library_and_a_name_that_a_package_has_not_are_missed(folder):
    script = folder / "project" / "classifier.py"
    script.write_text("import numpy.linalg\nfrom sklearn import metrics\nimport own_package.part\n"
                      "from engine import loop, missing\n")
    message = refusal()
    assert "own_package/part.py: missing" in message and "engine/missing.py: missing" in message
    assert "numpy" not in message and "sklearn" not in message


def test_predictions_of_further_tasks_are_packed_where_they_are(folder):
    write(folder / "predictions" / "cfimdb-dev-output.csv", "cfimdb")
    prepare_submit.main(["--part", "2"])
    names = zipfile.ZipFile(folder / prepare_submit.ZIP_NAME).namelist()
    assert sorted(name for name in names if name.startswith("predictions/")) == sorted(
        f"predictions/{name}" for name in [*PART2, "cfimdb-dev-output.csv"])
    write(folder / "predictions" / "cfimdb-dev-output.csv", "cfimdb", rows("012"))
    assert "cfimdb-dev-output.csv: 1 predictions other than 0 or 1" in refusal("--part", "2")


def test_the_real_project_is_packed_whole():
    root = prepare_submit.ROOT
    files = {path.as_posix() for path in prepare_submit.code_files(root)}
    assert prepare_submit.missing_code(root) == []
    assert {"scripts/__init__.py", "sanity_check.py", "optimizer_test.py", "engine/loop.py", "files/tables.py",
            "extensions/losses/focal.py"} <= files
    assert not [name for name in files if name.startswith(("tests/", "benchmarks/", ".")) or name == "conftest.py"]


def test_what_checks_the_submission_depends_on_no_file_of_a_students():
    """prepare_submit.py and all that it imports are tasks.py and files/."""
    root, todo, seen = prepare_submit.ROOT, [prepare_submit.ROOT / "prepare_submit.py"], set()
    while todo:
        path = todo.pop()
        seen.add(path.relative_to(root).as_posix())
        for module, names, _ in prepare_submit.imports_of(path):
            for name in (module, *(f"{module}.{name}" for name in names)):
                other = root / f"{name.replace('.', '/')}.py"
                todo += [other] if other.is_file() and other.relative_to(root).as_posix() not in seen else []
    assert {name for name in seen if not name.startswith("files/")} == {"prepare_submit.py", "tasks.py"}
