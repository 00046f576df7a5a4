"""Imports run downwards: who may import whom, read from the source; and the files that the layout names are there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODEL = ("bert", "base_bert", "config", "tokenizer", "optimizer", "utils")
SHARED = ("extensions.encoder", "extensions.forward", "extensions.listing", "extensions.specs", "extensions.technique")
TRAINING = (*MODEL, "datasets", "evaluation", "tasks", "files", "engine", "extensions")
# (files, what of the project they may import, the rule). The first line that fits a file counts; "extensions" stands
# for all that is below it, "extensions:" for the package alone.
RULES = (
    (("bert.py", "optimizer.py"), ("base_bert", "config", "utils"),
     "1: bert.py and optimizer.py import base_bert, config and utils alone, so that they run in the course's own tree"),
    (("base_bert.py", "config.py", "tokenizer.py", "utils.py"), ("base_bert", "config", "tokenizer", "utils", "files"),
     "1: base_bert, config, tokenizer and utils import each other and files/ alone"),
    (("files/",), ("files",), "2: files/ imports nothing else of the project"),
    (("tasks.py",), ("files",), "2: tasks.py imports files/ alone"),
    (("prepare_submit.py",), ("files", "tasks"), "2: prepare_submit.py depends on nothing that a student edits"),
    (("extensions/",), (*MODEL, "tasks", "files", "extensions"),
     "3: extensions/ imports the model, tasks, files/ and itself; the engine hands a technique what it needs"),
    (("engine/",), (*MODEL, "tasks", "files", "engine", "extensions:", *SHARED),
     f"4: engine/ imports techniques through the dicts of extensions and {', '.join(SHARED)} alone, and no script"),
    (("datasets.py", "evaluation.py"), (*MODEL, "datasets", "tasks", "files", "engine.batching", "engine.distributed",
                                        "engine.token_cache"),
     "5: datasets and evaluation use of engine/ batching, token_cache and distributed alone"),
    (("scripts/", "benchmarks/", "tests/", "conftest.py"), None, ""),
    (("",), (*TRAINING, "classifier", "multitask_classifier"), "6: nothing imports scripts/, benchmarks/ or tests/"),
)
PROJECT = {path.stem for path in ROOT.glob("*.py")} | {
    path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}


def imports_of(source):
    """Yield (line, dotted name) of all imports in a module's source, those within functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "a relative name: write the whole one"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # `from engine import step` imports a module, `from extensions import PENALTIES` a name of the package.
                path = ROOT / node.module.replace(".", "/")
                is_module = (path / f"{alias.name}.py").is_file() or (path / alias.name / "__init__.py").is_file()
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else node.module


def fits(name, allowed):
    """Tell whether a dotted name is one of the allowed ones, or below one."""
    return any(name == entry.rstrip(":") or (entry[-1] != ":" and name.startswith(f"{entry}.")) for entry in allowed)


def wrong_imports(path, source):
    """Return a line for each import of a file, "extensions/losses/mnrl.py", that breaks a rule."""
    _, allowed, rule = next(entry for entry in RULES if any(
        path == place or place.endswith("/") and path.startswith(place) or not place for place in entry[0]))
    return [f"{path}, line {line} imports {name}: rule {rule}" for line, name in imports_of(source)
            if (name.split(".")[0] in PROJECT or " " in name) and allowed is not None and not fits(name, allowed)]


def test_imports_run_downwards():
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0][0] != "."]
    wrong = [problem for path in sorted(paths)
             for problem in wrong_imports(path.as_posix(), (ROOT / path).read_text(encoding="utf-8"))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("path, source, rule", [
    ("bert.py", "import tasks", "1"), ("optimizer.py", "from files.errors import UserError", "1"),
    ("tokenizer.py", "from engine import batching", "1"), ("utils.py", "import tasks", "1"),
    ("files/tables.py", "from tasks import TASKS", "2"), ("tasks.py", "import config", "2"),
    ("extensions/losses/mnrl.py", "def f():\n    from engine import distributed", "3"),
    ("extensions/encoder.py", "from evaluation import collect", "3"),
    ("engine/step.py", "from extensions.losses.mnrl import mnrl", "4"), ("engine/loop.py", "import evaluation", "4"),
    ("engine/arguments.py", "from multitask_classifier import main", "4"),
    ("evaluation.py", "from engine import loop", "5"), ("datasets.py", "import engine.checkpoint", "5"),
    ("multitask_classifier.py", "from scripts.ablation import table", "6"),
    ("engine/loop.py", "import benchmarks.memory", "4")])
def test_a_wrong_arrow_is_named_with_its_rule(path, source, rule):
    (problem,) = wrong_imports(path, source)
    assert problem.startswith(f"{path}, line {source.count(chr(10)) + 1} imports ") and f": rule {rule}: " in problem


def test_engine_may_import_the_dicts_and_what_all_encoder_techniques_share():
    assert not wrong_imports("engine/step.py", "from extensions import PENALTIES\nimport extensions.encoder")


def test_the_table_of_contents_of_engine_names_every_file():
    contents = ast.get_docstring(ast.parse((ROOT / "engine" / "__init__.py").read_text(encoding="utf-8")))
    named = [line.split()[0] for line in contents.splitlines() if line.startswith("    ")]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "engine").glob("*.py") if path.stem != "__init__")
